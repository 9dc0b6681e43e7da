#!/usr/bin/env python3
"""Transformers loads the model folders that Chorale writes, and computes the same logits.

transformers_test.py WRITE_MODELS, where WRITE_MODELS is the program of write_models.cpp. Exit status 77 (skipped) where
torch or transformers are not installed.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)


def check(folder: pathlib.Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                         output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem], f"{folder.name}: {problem}: {report[problem]}"
    config = json.loads((folder / "config.json").read_text())
    for key in ("vocab_size", "hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(AutoConfig.from_pretrained(folder), key) == config[key], f"{folder.name}: {key}"
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([expected["tokens"]])).logits[0]
    ours = torch.tensor(expected["logits"]).reshape(logits.shape)
    error = ((logits - ours).abs().max() / logits.abs().max()).item()
    print(f"{folder.name}: largest difference of logits {error:.1e} of the largest logit")
    assert error < 2e-6, f"{folder.name}: logits differ"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.argv[1], folder], check=True)
        folders = sorted(pathlib.Path(folder).iterdir())
        assert len(folders) == 4, folders
        for model in folders:
            check(model)


if __name__ == "__main__":
    main()
