"""Finding one particular drawing among others of its kind, with the shipped model: learned token against class word.

    python -m benchmarks.personal --work /tmp/personal      # writes personal.md, .json and .png; under half an hour

For each of eight drawings a token is learned from five pictures, without masks (`pseudolabel personalize` with
`configs/pseudolabel/demo_personal.yaml`), and looked for in the three subsets of `data.demo.personal`. How maps are
read (layers, spreading, scaling, lambda) and cut is chosen for each rule on four of the drawings; the final table is
that of the other four alone. Scenes are read at the default size, timestep 30 and two noise draws, whatever the demo's
settings are. What is in the work folder is not computed again.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.common import HERE, machine, write_json, write_text
from benchmarks.personal_page import draw_sheet, report
from benchmarks.personal_read import maps_of, read_truths
from benchmarks.personal_rules import compare
from data.demo.personal import CONCEPTS, write_personal
from pseudolabel.personalize.config import LookConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--work", type=Path, required=True, help="folder for scenes, tokens and maps")
    parser.add_argument("--scenes", type=int, default=30, help="scenes of each subset")
    parser.add_argument("--steps", type=int, default=None, help="training steps, in place of the config's")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, training and noise")
    parser.add_argument("--only", nargs="*", default=[], help="KIND/CONCEPT: learn and read these alone, write no page")
    parser.add_argument("--output", type=Path, default=HERE / "personal", help="name of the files, without suffix")
    options = parser.parse_args()
    root = options.work / f"scenes_{options.scenes}_{options.seed}"
    write_personal(root, options.scenes, options.seed)
    kinds = {"taught": None, "plain": LookConfig()}  # plain: textual inversion as published
    maps: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for (kind, look), concept in product(kinds.items(), CONCEPTS):
        if not options.only or f"{kind}/{concept.name}" in options.only:
            maps[kind, concept.name] = maps_of(options, root, concept, kind, look)
    if options.only:
        return
    truths = {concept.name: read_truths(root / concept.name) for concept in CONCEPTS}
    found = {kind: compare(maps, truths, kind) for kind in kinds}
    content = {"scenes": options.scenes, "seed": options.seed, "machine": machine(), "rows": found}
    write_json(options.output.with_suffix(".json"), content)
    write_text(options.output.with_suffix(".md"), report(content))
    draw_sheet(root, maps, truths, found["taught"]).save(options.output.with_suffix(".png"), optimize=True)
    print(options.output.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
