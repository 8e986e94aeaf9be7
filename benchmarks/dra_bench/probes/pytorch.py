"""Answer queries in PyTorch: python -m dra_bench.probes.pytorch CHECKPOINT PICTURE TEXT MORE THREADS.

The weights are held once: the checkpoint's file is mapped, and the model takes its tensors from there.
"""

from dra_bench.probes.marks import mark, report


def main(checkpoint: str, picture: str, text: str, more: str, threads: str) -> None:
    """Load a checkpoint, answer one query and then more of them, a picture and a text each."""
    mark("interpreter")
    import torch

    mark("import torch")
    import open_clip  # noqa: F401 - the model is made of it: its share is shown apart

    mark("import open_clip")
    import numpy as np

    from dra_bench.contenders.pytorch import pytorch_towers
    from dra_runtime.preprocess import open_image
    from dra_train.model import DRA, DRAConfig

    mark("import the model")
    torch.set_num_threads(int(threads))
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    model = DRA(DRAConfig.from_dict(content["config"]))
    model.load_state_dict(content["model"], assign=True)
    del content
    towers = pytorch_towers(model.eval(), device=torch.device("cpu"))
    mark("load the checkpoint")

    def answer() -> None:
        pixels = np.stack([model.preprocess(open_image(picture))])
        towers.query(pixels, [text])

    answer()
    mark("first answer")
    if int(more):
        for _ in range(int(more)):
            answer()
        mark("more answers")
    report()


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
