"""The command dra-export."""

from dra_export.commands.engine import engine_command
from dra_export.commands.onnx import onnx_command
from dra_export.commands.triton import triton_command
from dra_export.commands.verify import verify_command
from dra_runtime.console import command_group

main = command_group(
    "dra-export",
    """Turn a checkpoint into a bundle that runs without PyTorch, and prove that nothing was lost.

    \b
      dra-export onnx runs/demo/ckpt.pt -o runs/demo/bundle
      dra-export verify runs/demo/bundle --checkpoint runs/demo/ckpt.pt
      dra-export engine runs/demo/bundle
      dra-export triton runs/demo/bundle -o repository
    """,
)

for command in (
    onnx_command,
    engine_command,
    verify_command,
    triton_command,
):
    main.add_command(command)
