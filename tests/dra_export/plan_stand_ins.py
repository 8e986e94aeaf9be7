"""Stand-ins for a bundle's TensorRT engines: sidecars that hold, of plans that nobody opens."""

from dataclasses import replace

from dra_runtime.bundle import Bundle
from dra_runtime.engine_file import BuildOptions, EngineSidecar, Proof, Target, with_plan, write_sidecar


def write_engines(bundle, key="some-gpu", **changes):
    """Write a plan and its sidecar for every part of a bundle, for batches of 1 to 12, in two profiles."""
    folder = bundle / "engines" / key
    folder.mkdir(parents=True)
    manifest = Bundle.open(bundle).manifest

    def shape(tensor, free):
        return tuple(free if isinstance(size, str) else size for size in tensor.shape)

    for part in (name for name in manifest.graphs if name != "query"):
        plan = folder / f"{part}.plan"
        plan.write_bytes(f"the plan of {part}".encode())
        graph = manifest.graphs[part]
        profiles = tuple(
            {tensor.name: tuple(shape(tensor, size) for size in sizes) for tensor in graph.inputs}
            for sizes in ((2, 2, 2), (2, 8, 12))
        )
        sidecar = EngineSidecar(
            graph=part,
            bundle_id=manifest.bundle_id,
            onnx_sha256=manifest.files[graph.file].sha256,
            plan=plan.name,
            plan_sha256="",
            plan_size=0,
            library="tensorrt",
            library_version="10.13.0.35",
            target=Target("linux-x86_64", ("8.9",), "Some GPU"),
            precision="fp32",
            proof=Proof(0, 100, 0, 40),
            profiles=profiles,
            inputs=graph.inputs,
            outputs=graph.outputs,
            build=BuildOptions(1, 8, 12),
            versions={"onnx": "1.17.0"},
        )
        write_sidecar(folder, replace(with_plan(sidecar, plan), **changes))
    return folder
