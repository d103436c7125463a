"""Learned tokens (textual inversion): each form of file against diffusers' own loader, and what is refused."""

import copy

import pytest
import torch

from data.classes import ClassSet
from data.errors import ModelError
from pseudolabel.softmaps.config import PromptConfig
from pseudolabel.softmaps.diffusion.families import encode_text
from pseudolabel.softmaps.prompt import find_spans, plan_prompts

TOKEN = "<my-mug>"


FORMS = {
    "named.safetensors": lambda v: {TOKEN: v},
    "named.bin": lambda v: {TOKEN: v},
    "bare.pt": lambda v: v,
    "a1111.pt": lambda v: {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(v)},
        "name": TOKEN,
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    },
    "a1111.safetensors": lambda v: {"emb_params": v},
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_learned_tokens_are_what_diffusers_loads(
    form, count, vectors, sd_folder, untouched_pipeline, tmp_path, load, write
):
    content = FORMS[form](vectors[:count].clone())
    path = write(tmp_path / form, content, not form.endswith("safetensors"))
    unnamed = form in ("bare.pt", "a1111.safetensors")
    ours = load(sd_folder, tokens=(f"{TOKEN}={path}" if unnamed else path,))
    state = {TOKEN: vectors[:count]} if unnamed else content
    pipeline = copy.deepcopy(untouched_pipeline)
    pipeline.load_textual_inversion(state)
    sentence = f"a photo including {TOKEN}, and dog."
    theirs = pipeline.encode_prompt(sentence, "cpu", 1, False)[0]
    [prompt] = plan_prompts(
        (1, 2), ClassSet((TOKEN, "dog"), (TOKEN, "dog"), ((), ())), PromptConfig(), ours.tokenizers[0], 77
    )
    torch.testing.assert_close(encode_text(ours, prompt.text).tokens, theirs, rtol=0, atol=0)
    assert [len(span) for span in prompt.spans] == [count, 1]
    assert len(find_spans(sentence, TOKEN, ours.tokenizers[0])) == count


def test_a_learned_token_changes_the_embedding(vectors, sd_folder, plain, tmp_path, load, write):
    """What the test above says nothing about if both loaders did nothing."""
    ours = load(sd_folder, tokens=(write(tmp_path / "t.safetensors", {TOKEN: vectors}, False),))
    ids = ours.tokenizers[0].convert_tokens_to_ids([TOKEN, f"{TOKEN}_1", f"{TOKEN}_2"])
    torch.testing.assert_close(ours.text_encoders[0].get_input_embeddings().weight[ids], vectors)
    first = encode_text(ours, f"a photo of {TOKEN}").tokens
    assert not torch.allclose(first, encode_text(plain, f"a photo of {TOKEN}").tokens)
    assert ours.fingerprint != plain.fingerprint


def test_sdxl_takes_a_vector_for_each_encoder(vectors, sdxl_folder, tmp_path, load, write):
    both = write(tmp_path / "both.safetensors", {"clip_l": vectors, "clip_g": 2 * vectors}, False)
    parts = load(sdxl_folder, tokens=(f"{TOKEN}={both}",))
    for encoder, tokenizer, factor in zip(parts.text_encoders, parts.tokenizers, (1, 2), strict=True):
        row = encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(f"{TOKEN}_2")]
        torch.testing.assert_close(row, factor * vectors[2])
    first = write(tmp_path / "one.safetensors", {TOKEN: vectors}, False)
    with pytest.raises(ModelError, match=r"this model has 2 text encoders, and each needs as many"):
        load(sdxl_folder, tokens=(first,))
    assert load(sdxl_folder, tokens=(first, first)).fingerprint != parts.fingerprint  # one file for each


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({TOKEN: torch.zeros(8)}, r"vectors of width 8, but this model's text encoder reads 16"),
        ({"dog": torch.zeros(16)}, r"'dog' is in the tokenizer's vocabulary already"),
        ({TOKEN: torch.full((16,), torch.nan)}, "not finite"),
        ({TOKEN: torch.zeros(2, 2, 16)}, r"shape \(2, 2, 16\)"),
        ({"two words": torch.zeros(16)}, "one word without spaces"),
        ({"string_to_param": {"*": torch.zeros(16)}, "name": TOKEN, "more": torch.zeros(3)}, "does not: more"),
        (torch.zeros(1, 16), r"does not say what its token is called: write TOKEN=FILE"),
        ({TOKEN: Evil()}, "holds more than weights, which is not run"),
        ([torch.zeros(16)], "holds a list, not named tensors"),
    ],
)
def test_unsuitable_embeddings_are_one_line(content, message, sd_folder, tmp_path, capsys, load, write):
    path = write(tmp_path / "t.pt", content, True)
    with pytest.raises(ModelError, match=message) as caught:
        load(sd_folder, tokens=(path,))
    assert "\n" not in str(caught.value)
    assert "this must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["t.safetensors", "t.bin", "t.pt"])
def test_damaged_files_are_one_line(name, sd_folder, tmp_path, load):
    (tmp_path / name).write_bytes(b"PK\x03\x04 no such thing")
    with pytest.raises(ModelError, match=r"cannot be read|damaged"):
        load(sd_folder, tokens=(str(tmp_path / name),))
    with pytest.raises(ModelError, match="There is no file"):
        load(sd_folder, tokens=(str(tmp_path / "nowhere.pt"),))


def test_a_token_given_twice_is_an_error(vectors, sd_folder, tmp_path, load, write):
    path = write(tmp_path / "t.safetensors", {TOKEN: vectors}, False)
    with pytest.raises(ModelError, match="given twice"):
        load(sd_folder, tokens=(path, path))
    both = load(sd_folder, tokens=(path, f"<other>={path}"))
    assert "<other>_2" in both.tokenizers[0].get_added_vocab()
