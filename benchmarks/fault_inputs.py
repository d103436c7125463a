"""The drawn inputs that are damaged, and the readers a user's command meets them with."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import DEMO_MODEL, HERE
from benchmarks.fault_phrases import PHRASE_TARGETS, save
from data.class_file import load_classes, save_classes
from data.classes import make_classes
from data.config import DataConfig
from data.errors import UserError
from data.images import read_image
from data.masks import read_truth, write_mask
from data.readers.layout import open_samples
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore

CLASSES = make_classes(["disc", "box", "dining table"], {}, {})


@dataclass(frozen=True)
class Target:
    """A drawn input and its reader.

    Attributes:
        build: draws the input into a folder.
        read: reads it as a command does; returns what can be compared with ==.
        files: the files that are mutated, relative to the folder; their suffix says how.
        checked: suffixes of files whose bytes are protected by a checksum.
        weight: share of the trials, for readers that are slow.
        either: `key: type` of values that may have this type too, by the format's description.

    """

    build: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    checked: tuple[str, ...] = ()
    weight: float = 1.0
    either: tuple[str, ...] = ()


def draw(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def build_coco(root: Path) -> None:
    images, annotations = [], []
    polygon = [[4.0, 4.0, 20.0, 4.0, 20.0, 18.0, 4.0, 18.0]]
    counts = [0, 24 * 32 // 2, 24 * 32 // 2]
    for number in (1, 2, 3):
        name = f"{number:012d}.png"
        save(root / "train2014" / name, draw(number))
        images.append({"id": number, "file_name": name, "height": 24, "width": 32})
        shape = {"counts": counts, "size": [24, 32]} if number == 3 else polygon
        annotations.append(
            {
                **{"id": number, "image_id": number, "category_id": 1 + number % 2, "iscrowd": int(number == 3)},
                **{"segmentation": shape, "area": 200.0, "bbox": [4.0, 4.0, 16.0, 14.0]},
            }
        )
    categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "box"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(content))


def build_voc(root: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        save(root / "JPEGImages" / f"{name}.jpg", draw(ord(name)))
        objects = "<object><name>disc</name><difficult>0</difficult></object>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        write_mask(root / "SegmentationClass" / f"{name}.png", np.ones((24, 32), np.uint8))
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    save_classes(CLASSES, root / "classes.yaml")


def build_folder(root: Path, labels: str, content: bytes) -> None:
    for name in ("a", "b", "c"):
        save(root / "images" / f"{name}.png", draw(ord(name)))
    (root / labels).write_bytes(content)


def build_csv(root: Path) -> None:
    build_folder(root, "labels.csv", b"file_name,labels\na.png,disc;box\nb.png,box\nc.png,dining table\n")


def build_one_hot(root: Path) -> None:
    build_folder(root, "labels.csv", b"file_name,disc,box\na.png,1,1\nb.png,0,1\nc.png,1,0\n")


def build_jsonl(root: Path) -> None:
    rows = [{"file_name": "a.png", "labels": ["disc", "box"]}, {"file_name": "b.png", "labels": ["box"]}]
    build_folder(root, "labels.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def build_cls_labels(root: Path) -> None:
    table_of_labels = {name: np.array([1, 0, 1], np.float32) for name in ("a", "b")}
    buffer = io.BytesIO()
    np.save(buffer, np.array(table_of_labels, dtype=object), allow_pickle=True)
    build_folder(root, "cls_labels.npy", buffer.getvalue())
    save_classes(CLASSES, root / "classes.yaml")


def read_data(config: DataConfig) -> Any:
    """Read every sample, its image and its truth, as check, generate and score do."""
    found = open_samples(config)
    rows = []
    for sample in found.samples:
        shape = read_image(sample.image_path).shape[:2]
        truth = None if sample.truth_path is None else read_truth(sample.truth_path, shape, sample.image_path).tobytes()
        rows.append((sample.id, sample.labels, shape, truth))
    return found.classes.names, rows, found.notes


def build_images(root: Path) -> None:
    for suffix, options in (("jpg", {}), ("png", {}), ("tif", {}), ("gif", {}), ("bmp", {}), ("webp", {})):
        save(root / f"a.{suffix}", draw(7), **options)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "turned.jpg", draw(8), exif=exif)


def read_images(root: Path) -> Any:
    return [read_image(path).shape for path in sorted(root.iterdir())]


def build_store(root: Path) -> None:
    store = MaskStore.create(
        root / "S", classes=CLASSES, config={"fuse": {"threshold": 0.4}}, model={"id": "none"}, data={"root": str(root)}
    )
    for name in ("a", "b"):
        save(root / f"{name}.png", draw(ord(name)))
        mask = np.zeros((24, 32), np.uint8)
        mask[4:12, 5:20] = 1
        maps = np.linspace(0, 1, 12, dtype=np.float16).reshape(1, 3, 4)
        soft = SoftMaps(maps, (1,), False, (24, 32), (24, 32), (24, 32))
        record = {"image": f"{name}.png", "labels": [1], "ignore_share": 0.0, "class_share": {"disc": 0.2}}
        store.write(name, mask, argmax=mask, soft=soft, record=record)


def read_store(root: Path) -> Any:
    store = MaskStore.open(root / "S")
    rows = []
    for record in store.records():
        name = record["id"]
        soft = store.read_soft(name)
        maps = None if soft is None else (soft.maps.tobytes(), soft.labels)
        image = read_image(store.image_path(record)).shape
        rows.append((record, store.read_mask(name).tobytes(), store.read_argmax(name).tobytes(), maps, image))
    return store.classes.names, rows


def build_settings(root: Path) -> None:
    shutil.copy(HERE.parent / "configs/pseudolabel/voc12.yaml", root / "config.yaml")


def read_settings(root: Path) -> Any:
    return run("pseudolabel.cli", ["generate", "--config", str(root / "config.yaml"), "--print_config"])


def build_training(root: Path) -> None:
    shutil.copy(HERE.parent / "configs/train/voc12.yaml", root / "config.yaml")


def read_training(root: Path) -> Any:
    return run("train.cli", ["fit", "--config", str(root / "config.yaml"), "--print_config"])


def run(module: str, args: list[str]) -> str:
    """Run a command line in this process; a status of 2 is the clean error it has printed."""
    main = __import__(module, fromlist=["main"]).main
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(args)
        except SystemExit as left:
            status = left.code
    if status == 2:
        raise UserError(err.getvalue().strip())
    if status:
        raise RuntimeError(f"status {status}: {err.getvalue()[-200:]}")
    return out.getvalue()


def build_checkpoint(root: Path) -> None:
    import torch

    from data.config import to_plain
    from train.checkpoint import CARD_KEY, make_card
    from train.network import NetworkConfig, build_network

    config = NetworkConfig(encoder="tu-test_resnet", weights=None, decoder_channels=16, atrous_rates=(1, 2, 3))
    torch.manual_seed(0)
    network = build_network(config, len(CLASSES) + 1, pretrained=False)
    card = make_card(CLASSES, network.normalisation(), {"network": to_plain(config)})
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, CARD_KEY: card}, root / "last.ckpt")


def read_checkpoint(root: Path) -> Any:
    from train.checkpoint import load_network

    network, classes, _card = load_network(root / "last.ckpt")
    return classes.names, {key: value.numpy().tobytes() for key, value in network.state_dict().items()}


def build_model(root: Path) -> None:
    shutil.copytree(DEMO_MODEL, root / "model")


def read_model(root: Path) -> Any:
    import torch

    from pseudolabel.softmaps.config import ModelConfig
    from pseudolabel.softmaps.diffusion.load import load_parts

    parts = load_parts(ModelConfig(id=str(root / "model")), torch.device("cpu"), torch.float32)
    return {key: value.numpy().tobytes() for key, value in parts.denoiser.state_dict().items()}


def build_adapters(root: Path) -> None:
    import torch
    from safetensors.torch import save_file

    rows = torch.arange(16.0).reshape(2, 8)
    save_file({"<a>": rows}, root / "named.safetensors")
    torch.save({"<b>": rows}, root / "named.bin")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "<c>"}, root / "a1111.pt")
    factors = {"unet.attn2.to_k.lora_A.weight": rows, "unet.attn2.to_k.lora_B.weight": rows.T.contiguous()}
    settings = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4})}
    save_file(factors, root / "lora.safetensors", metadata=settings)
    weights = {"attn2.processor.to_k_custom_diffusion.weight": torch.ones(8, 8)}
    save_file(weights, root / "custom.safetensors")


def read_adapters(root: Path) -> Any:
    import torch

    from pseudolabel.softmaps.diffusion import adapters, lora

    found: list[Any] = []
    for name in ("named.safetensors", "named.bin", "a1111.pt"):
        learned = adapters.read_tokens(None, root / name)
        found += [(one.token, one.vectors.float().numpy().tobytes()) for one in learned]
    unet = torch.nn.ModuleDict({"attn2": torch.nn.ModuleDict({"to_k": torch.nn.Linear(8, 8, bias=False)})})
    unet.down_blocks = unet.up_blocks = torch.nn.ModuleList()
    torch.nn.init.zeros_(unet["attn2"]["to_k"].weight)
    adapters.load_custom_diffusion(root / "custom.safetensors", unet)
    metadata: dict[str, str] = {}
    tensors = adapters.read_tensors(root / "lora.safetensors", "model.lora", metadata)
    lora.merge_lora("lora.safetensors", tensors, metadata, 1.0, {"unet": unet})
    return [*found, unet["attn2"]["to_k"].weight.detach().numpy().tobytes()]


def data_target(build: Callable[[Path], None], *files: str, **settings: Any) -> Target:
    def read(root: Path) -> Any:
        own = {key: root / value if key in {"classes", "labels"} else value for key, value in settings.items()}
        return read_data(DataConfig(root=root, cache=root / "cache", **own))

    return Target(build, read, files)


TARGETS: dict[str, Target] = {
    **{name: Target(*parts) for name, parts in PHRASE_TARGETS.items()},
    "coco": data_target(build_coco, "annotations/instances_train2014.json"),
    "voc": data_target(
        build_voc, "Annotations/a.xml", "ImageSets/Segmentation/train.txt", "classes.yaml", classes="classes.yaml"
    ),
    "labels.csv": data_target(build_csv, "labels.csv"),
    "labels.csv, one-hot": data_target(build_one_hot, "labels.csv"),
    "labels.jsonl": replace(data_target(build_jsonl, "labels.jsonl"), either=("labels: str",)),
    "cls_labels.npy": data_target(build_cls_labels, "cls_labels.npy", labels="cls_labels.npy", classes="classes.yaml"),
    "classes.yaml": Target(
        lambda root: save_classes(CLASSES, root / "classes.yaml"),
        lambda root: load_classes(root / "classes.yaml"),
        ("classes.yaml",),
        either=("0: str", "1: str"),  # an entry may be a name alone
    ),
    "images": Target(
        build_images, read_images, ("a.jpg", "a.png", "a.tif", "a.gif", "a.bmp", "a.webp", "turned.jpg"), ()
    ),
    "ground truth": Target(
        build_voc,
        lambda root: read_data(DataConfig(root=root, classes=root / "classes.yaml")),
        ("SegmentationClass/a.png",),
        (".png",),
    ),
    "store": Target(
        build_store,
        read_store,
        ("S/store.json", "S/index.jsonl", "S/masks/a.png", "S/argmax/a.png", "S/scores/a.npz"),
        (".png", ".npz"),
    ),
    "settings of stage one": Target(
        build_settings, read_settings, ("config.yaml",), weight=0.3, either=("format: NoneType",)
    ),
    "settings of stage two": Target(build_training, read_training, ("config.yaml",), weight=0.1),
    "checkpoint": Target(build_checkpoint, read_checkpoint, ("last.ckpt",), (".ckpt",), weight=0.5),
    "adapters": Target(
        build_adapters,
        read_adapters,
        ("named.safetensors", "named.bin", "a1111.pt", "lora.safetensors", "custom.safetensors"),
        (".bin", ".pt"),
        weight=0.5,
    ),
    "diffusion model": Target(
        build_model,
        read_model,
        (
            *("model/unet/config.json", "model/text_encoder/config.json", "model/model_index.json"),
            *("model/tokenizer/tokenizer.json", "model/scheduler/scheduler_config.json"),
            *("model/unet/diffusion_pytorch_model.safetensors", "model/vae/config.json"),
        ),
        (".safetensors",),
        weight=0.1,
    ),
}
