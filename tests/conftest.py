"""What holds for all tests: shapes are checked, a core for each worker, and no time limit on a drawn example."""

import os

from hypothesis import settings
from jaxtyping import install_import_hook

# Where arrays are computed with, every call's shapes and number formats are those of its signature.
SHAPED = (
    *(f"data.{name}" for name in ("densecrf", "masks", "phrase_scores", "scoring", "store.softmaps")),
    *(
        f"pseudolabel.softmaps.{name}"
        for name in ("affinity", "boxes", "frame", "grids", "means", "passes", "reading", "shares", "weights")
    ),
    *(
        f"pseudolabel.masks.{name}"
        for name in ("crf", "fuse", "guided", "labelmap", "pamr", "sam_prompts", "tlp", "working")
    ),
    *(f"pseudolabel.calibrate.{name}" for name in ("criteria", "offline")),
    "pseudolabel.personalize.looking",
    *(f"train.{name}" for name in ("crf_tiles", "losses", "probability_file", "tiles")),
)
install_import_hook(SHAPED, "beartype.beartype")

# Two workers whose torch has two threads each wait for one another on two cores: tiny trainings took ten times longer.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# How long an example takes is the machine's affair, not the code's. The same examples at every run, so that what fails
# here fails there; `--hypothesis-profile=explore` draws others.
settings.register_profile("explore", deadline=None)
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
