"""Two causal models beside SmolLM2: calibrated for targets, and asked how often their next tokens stay the same.

    pip install -e '.[transformers]'
    python benchmarks/antibodies.py FOLDER [--targets .8 .85 .9 .95] [--jobs 1]

The package iglm ships two GPT-2 models of antibodies, IgLM (12.9 million weights) and IgLM-S (1.4 million), for
non-commercial use. It is downloaded and unpacked, not installed. Texts are what each model writes itself, with a fixed
seed: 220 sequences of 11 kinds (chain and species), of which 132 are calibrated on and 88 are asked. Snapshots, texts,
calibrations and packs lie in FOLDER.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from lookup_grade import processor
from real_models import unpacked
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import hhtld
from hhtld.evaluation.calibrate import calibrate
from hhtld.evaluation.parity import gate_parity
from hhtld.evaluation.parity.prompts import Prompt

PACKAGE = "iglm==0.1.0"
MODELS = ("IgLM", "IgLM-S")
CHAINS = ("[HEAVY]", "[LIGHT]")
SPECIES = ("[CAMEL]", "[HUMAN]", "[MOUSE]", "[RABBIT]", "[RAT]", "[RHESUS]")
END, PAD = "[CLS]", "[PAD]"
N_EACH, N_CALIBRATED, LONGEST = 20, 12, 150


def snapshot(trained: Path, name: str, vocabulary: dict[str, int], out: Path) -> GPT2LMHeadModel:
    """Write a model as a snapshot folder whose tokenizer takes words that are tokens, and return it."""
    told = json.loads((trained / name / "config.json").read_text())
    for key in ("architectures", "transformers_version", "_name_or_path"):
        told.pop(key)
    model = GPT2LMHeadModel(GPT2Config(**told | {"bos_token_id": vocabulary[END], "eos_token_id": vocabulary[END]}))
    state = torch.load(trained / name / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model.load_state_dict(state, strict=False)  # masks of attention are stored, and no longer parameters
    model.tie_weights()
    model.eval().save_pretrained(out)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token=PAD, eos_token=END
    ).save_pretrained(out)
    return model


def written(model: GPT2LMHeadModel, vocabulary: dict[str, int], seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Return sequences that a model writes: to calibrate on, and to be asked."""
    torch.manual_seed(seed)
    words = {number: word for word, number in vocabulary.items()}
    never = [[number] for word, number in vocabulary.items() if word.startswith("[") and word != END]
    calibrated, asked = [], []
    for chain in CHAINS:
        for species in SPECIES:
            if (chain, species) == ("[LIGHT]", "[CAMEL]"):  # camels have none
                continue
            begun = torch.tensor([[vocabulary[chain], vocabulary[species]]] * N_EACH)
            rows = model.generate(
                begun,
                attention_mask=torch.ones_like(begun),
                max_length=LONGEST,
                do_sample=True,
                top_k=0,
                pad_token_id=vocabulary[PAD],
                eos_token_id=vocabulary[END],
                bad_words_ids=never,
            )
            for number, row in enumerate(rows.tolist()):
                tokens = [words[token] for token in row if token not in (vocabulary[PAD], vocabulary[END])]
                kind = f"{chain} {species}".lower().translate(str.maketrans("", "", "[]"))
                (calibrated if number < N_CALIBRATED else asked).append(Prompt(kind, " ".join(tokens)))
    return calibrated, asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--targets", nargs="*", type=float, default=[0.8, 0.85, 0.9, 0.95])
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.jobs)
    trained = unpacked(PACKAGE, args.folder) / "iglm" / "trained_models"
    vocabulary = {word: number for number, word in enumerate((trained / "vocab.txt").read_text().split())}
    print(f"{processor()}; expected and measured shares of equal next tokens, 95 % interval over whole sequences")
    for seed, name in enumerate(MODELS):
        folder = args.folder / name
        calibrated, asked = written(snapshot(trained, name, vocabulary, folder), vocabulary, seed)
        calibration = calibrate(folder, calibrated, jobs=args.jobs)
        for target in args.targets:
            pack = args.folder / f"{name}-{target:g}.hhtld"
            hhtld.convert(folder, pack, calibrate=calibration, target_top1=target, jobs=args.jobs, min_ratio=0)
            expected = calibration.expected_top1(calibration.level_for(target))
            found = gate_parity(folder, pack, asked, min_top1=0, n_continued=0, jobs=args.jobs).to_json()
            low, high = found["top1"]["bootstrap_95"]
            print(
                f"{name:8} {target:5g} {pack.stat().st_size / 1e6:7.2f} MB  {expected:.3f}  "
                f"{found['top1']['share']:.3f} ({low:.3f} to {high:.3f})  KL {found['all']['kl_nats']:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
