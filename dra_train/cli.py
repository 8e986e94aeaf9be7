"""The command dra-train."""

from dra_runtime.console import command_group
from dra_train.commands.ablate import ablate_command
from dra_train.commands.attention import attention_command
from dra_train.commands.check_data import check_data_command
from dra_train.commands.evaluate import evaluate_command
from dra_train.commands.fit import fit_command
from dra_train.commands.import_ import import_command
from dra_train.commands.init import init_command
from dra_train.commands.submit import submit_command

main = command_group(
    "dra-train",
    """Train DRA models for composed image retrieval, and measure what they find.

    \b
    A first run, on the pictures inside the repository:
      dra-train fit --preset demo --out runs/demo
      dra-train evaluate runs/demo/ckpt.pt --split val_unseen
    """,
)

for command in (
    fit_command,
    init_command,
    import_command,
    evaluate_command,
    submit_command,
    check_data_command,
    attention_command,
    ablate_command,
):
    main.add_command(command)
