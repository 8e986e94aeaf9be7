"""The command dra-export. Each command's module is imported when it is used: most bring PyTorch, `inspect` doesn't."""

from dra_runtime.console import Later, command_group

main = command_group(
    "dra-export",
    """Turn a checkpoint into a bundle that runs without PyTorch, and prove that nothing was lost.

    \b
      dra-export onnx runs/demo/ckpt.pt -o runs/demo/bundle
      dra-export verify runs/demo/bundle --checkpoint runs/demo/ckpt.pt
      dra-export inspect runs/demo/bundle
      dra-export engine runs/demo/bundle
      dra-export triton runs/demo/bundle -o repository
    """,
)


def _later(name: str, short_help: str) -> Later:
    return Later(f"dra_export.commands.{name}", f"{name}_command", short_help, "export")


main.later = {
    "onnx": _later("onnx", "Turn a checkpoint into a bundle of ONNX graphs."),
    "engine": _later("engine", "Build TensorRT engines from a bundle."),
    "verify": _later("verify", "Compare bundles on disk with PyTorch."),
    "inspect": _later("inspect", "Say what a file or folder is, and where it runs."),
    "triton": _later("triton", "Make a model repository for Triton Inference Server."),
}
