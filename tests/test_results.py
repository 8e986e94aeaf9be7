"""Every figure in README.md and docs/results.md is the committed JSON's."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def renderer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_results", ROOT / "scripts" / "render_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documents_show_the_committed_figures(renderer: ModuleType) -> None:
    machines = [path.name for path in (ROOT / "benchmarks" / "results").iterdir() if path.is_dir()]
    assert machines
    assert renderer.main([*machines, "--check"]) == 0, "run scripts/render_results.py"


def test_a_changed_figure_is_noticed(renderer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    for name in ("README.md", "docs/results.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    machine = next(path.name for path in (tmp_path / "benchmarks" / "results").iterdir())
    monkeypatch.setattr(renderer, "ROOT", tmp_path)
    assert renderer.main([machine, "--check"]) == 0
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(readme.replace(" ± 0.", " ± 9.", 1), encoding="utf-8")
    assert renderer.main([machine, "--check"]) == 1
