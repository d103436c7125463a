"""The command `demo`: both stages on the shipped world and model, and a page that shows it."""

import time
from pathlib import Path

from pseudolabel.demo.results import FULL, QUICK, Device, Result, Step, summary


def demo(
    output: Path = Path("demo_output"),
    quick: bool = False,
    draw_only: bool = False,
    device: Device = "auto",
    true_masks: bool = False,
) -> None:
    """Run both stages end to end on the shipped world and diffusion model.

    Args:
        output: Folder for everything; --quick uses its subfolder quick. Drawing and masks are resumed.
        quick: A few scenes and epochs, to see that everything works; the figures mean nothing.
        draw_only: Stop after drawing the world.
        device: Where the networks run; auto: a GPU if there is one.
        true_masks: Also train the same network on the true masks, for comparison.

    """
    from data.demo.world import write_world
    from data.machine import describe_machine
    from data.wording import count
    from pseudolabel.demo.run import make_masks, require_files, train_network, write_results

    size = QUICK if quick else FULL
    folder = Path(output) / "quick" if quick else Path(output)
    world = folder / "world"
    require_files(draw_only)
    start = time.perf_counter()
    drawn = write_world(world, train=size.train, val=size.val)
    seconds = time.perf_counter() - start
    print(
        f"{'Drew' if drawn else 'Found'} {count(size.train, 'scene')} to label and {size.val} to test on in {world}",
        flush=True,
    )
    if draw_only:
        print(f"Next: pseudolabel demo --output {output}")
        return
    result = Result(machine=describe_machine(device))
    result.steps.append(
        Step("Draw the world", f"pseudolabel demo {'--quick ' if quick else ''}--draw_only --output {output}", seconds)
    )
    make_masks(result, folder, size, device)
    train_network(result, folder, size, device)
    if true_masks:
        train_network(result, folder, size, device, true_masks=True)
    result.seconds = sum(step.seconds for step in result.steps)
    write_results(result, folder, size)
    print(summary(result, folder))
