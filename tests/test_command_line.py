"""What a user reads when a script stops: one sentence, exit code 2, no token."""

import errno

import pytest

from command_line_xrf import run, without_tokens
from configuration_xrf import XRFMaskedConfig


def stopped(capsys, main):
    with pytest.raises(SystemExit) as stop:
        run(main)
    return stop.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


def test_bad_input_is_one_sentence_and_exit_code_2(capsys):
    assert stopped(capsys, raising(ValueError("gain_kev must be\n  positive."))) == (
        2,
        "error: gain_kev must be positive.\n",
    )
    full = OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
    assert stopped(capsys, raising(full)) == (2, "error: No space left on device: model.safetensors\n")


def test_a_bad_configuration_is_told_in_its_own_words(capsys):
    code, text = stopped(capsys, lambda: XRFMaskedConfig(patch_size=14))
    assert (code, text) == (2, "error: spectrum_length (2048) must be a multiple of patch_size (14); use 16.\n")


def test_a_defect_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError):
        run(raising(KeyError("defect")))


def test_interruption_has_its_own_code(capsys):
    assert stopped(capsys, raising(KeyboardInterrupt())) == (130, "interrupted\n")


def test_tokens_are_blanked_in_what_is_printed(capsys):
    token = "hf_" + "Zx9" * 8
    _, text = stopped(capsys, raising(ValueError(f"refused {token}")))
    assert token not in text and "<token>" in text
    assert without_tokens("hf_hub_download") == "hf_hub_download"
