"""The command `personalize`: a few photographs of one's own thing in, a token (and weights) for it out."""

import time
from typing import Any

from pseudolabel.personalize.config import PersonalizeConfig


def personalize(**settings: Any) -> None:
    """Learn one particular thing from a few photographs, without masks; run again to resume.

    The files are those diffusers writes and reads; every other command takes them (--model.tokens and so on).

    Args:
        **settings: The fields of PersonalizeConfig.

    """
    from pseudolabel.personalize.photographs import USUAL
    from pseudolabel.personalize.training import learn

    config = PersonalizeConfig(**settings)
    started = time.perf_counter()
    learned = learn(config)
    print(
        f"Learned {config.token} from {learned.photographs} photographs in {time.perf_counter() - started:.0f} s; loss "
        f"{learned.first:.4f} at first, {learned.last:.4f} at last."
    )
    if learned.photographs < USUAL:
        print(f"Few photographs ({learned.photographs}): what surrounds the thing may have been learned with it.")
    print(f"Wrote {config.output}.")
    print(f"Next: give any command that loads the model {' '.join(learned.options)}")
    print(f'      and write "{config.token}" in a phrase or sentence.')
