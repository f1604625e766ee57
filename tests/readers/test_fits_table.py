"""FITS tables of X-ray astronomy: types I and II, rates, energy bounds, and headers that lie about their sizes."""

import builtins
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from instrument_files.fits_table import CARDS, CHANNEL, card, energy_bounds, examples, primary, table, type_one

from dataset_builder import SpectrumFileError, iter_spectra, read_spectra

pytest.importorskip("astropy", reason="reading FITS needs astropy")


def write(path, content):
    path.write_bytes(content)
    return path


def test_type_one_is_one_spectrum(tmp_path):
    (spectrum,) = read_spectra(write(tmp_path / "a.dat", type_one()))
    assert spectrum.counts.tolist() == [3, 0, 4, 28, 52, 7]
    assert spectrum.counts.dtype.isnative
    assert (spectrum.live_time_s, spectrum.instrument, spectrum.filter) == (1780.0, "SDD-1", "none")
    # GAIN is the channel width; nothing says the energy of channel 0, so it is not made up.
    assert (spectrum.gain_kev, spectrum.offset_kev) == (0.027, None)
    assert spectrum.metadata == {"EXTNAME": "SPECTRUM", "TELESCOP": "ORBITER", "DETCHANS": "6", "GAIN": "27.0"}


def test_gain_without_the_unit_of_a_channel_width_says_nothing(tmp_path):
    cards = [card("GAIN", 1.7, "e-/ADU")]
    (spectrum,) = read_spectra(write(tmp_path / "a.fits", type_one(cards=cards)))
    assert (spectrum.gain_kev, spectrum.metadata["GAIN"]) == (None, "1.7")
    cards = [card("GAIN", 0.01, "keV/channel")]
    assert read_spectra(write(tmp_path / "a.fits", type_one(cards=cards)))[0].gain_kev == 0.01


def test_type_two_is_a_spectrum_a_row_and_rates_say_so(tmp_path):
    first, second = read_spectra(write(tmp_path / "a.fits", examples()["type_two_rates.fits"]))
    assert first.counts.tolist() == second.counts.tolist() == [1] * 6
    assert (first.live_time_s, second.live_time_s) == (10, 20)
    assert first.metadata == {"EXTNAME": "SPECTRUM", "SPEC_NUM": "1", "counts_unit": "counts per second"}


def test_energy_bounds_give_the_centres_of_the_channels(tmp_path):
    (spectrum,) = read_spectra(write(tmp_path / "a.fits", type_one(energy_bounds(0.1 + 0.027 * np.arange(6)))))
    np.testing.assert_allclose(spectrum.energy_kev, 0.1 + 0.027 * (np.arange(6) + 0.5), atol=1e-6)


def test_scaled_integers_and_several_tables(tmp_path):
    # FITS has no unsigned integers: 16 bits from 0 to 65535 are stored with an offset of 32768.
    stored = (np.array([3, 0, 40000]) - 32768).astype(">i2")
    unsigned = table("SPECTRUM", {"COUNTS": stored}, card("TZERO1", 32768.0), card("TSCAL1", 1.0))
    other = table("GTI", {"START": np.zeros(2, ">f8")})
    spectra = read_spectra(write(tmp_path / "a.fits", type_one(unsigned, other)))
    assert [spectrum.counts.tolist() for spectrum in spectra] == [[3, 0, 4, 28, 52, 7], [3, 0, 40000]]


def with_card(content: bytes, keyword: str, value, extension: int = 1) -> bytes:
    """The file with one card of the first extension changed."""
    start = content.index(card(keyword, 0)[:9], 2880 * extension)
    return content[:start] + card(keyword, value) + content[start + 80 :]


LIES = {
    "2 GB of rows": (with_card(type_one(), "NAXIS2", 2**31 // 10), "bytes of data but 2880 follow"),
    "negative rows": (with_card(type_one(), "NAXIS2", -1), "extension 1: "),
    "rows that are none": (with_card(type_one(), "NAXIS2", "many"), "extension 1: "),
    "endless heap": (with_card(type_one(), "PCOUNT", 2**62), "bytes of data but 2880 follow"),
    "many columns": (with_card(type_one(), "TFIELDS", 2**31), "TFIELDS must be 0 to 999; found 2147483648"),
    "wide column": (with_card(type_one(), "TFORM2", "123456789D"), "must fill a row of NAXIS1 = 10 bytes; TFORM"),
    "too few channels": (with_card(type_one(), "DETCHANS", 1024), "declares 1024 channels but 6 were found"),
    "no counts": (primary() + table("EVENTS", {"TIME": np.zeros(3, ">f8")}), r"found EVENTS \(TIME\)"),
    "no table": (primary(), "found no table"),
    "texts for counts": (with_card(type_one(), "TFORM2", "8A"), "COUNTS must hold a number or a vector"),
    "junk behind": (type_one() + b"x" * 2880, "extension 2: an extension must begin with XTENSION"),
    "no end": (type_one().replace(b"END", b"AND"), "primary header: the file is damaged"),
    "gap in the channels": (type_one(channel=CHANNEL * 2), "row 1 of CHANNEL does not"),
    "negative counts": (type_one(counts=np.array([1, 2, -3, 4, 5, 6])), "must not be negative"),
    "NaN counts": (type_one(counts=np.array([1, 2, np.nan, 4, 5, 6])), "counts must be finite"),
    "uneven energies": (type_one(energy_bounds([0, 1, 2, 3, 4, 9])), "E_MIN must rise evenly"),
    "falling energies": (type_one(energy_bounds(np.arange(6)[::-1])), "E_MIN must rise evenly"),
    "NaN energies": (type_one(energy_bounds(np.full(6, np.nan))), "E_MIN must rise evenly"),
    "fewer energies": (
        type_one(table("EBOUNDS", {"E_MIN": np.ones(2, ">f4"), "E_MAX": np.ones(2, ">f4")})),
        "declares 2 channels but 6 were",
    ),
    "exposure of a word": (type_one(cards=[card("EXPOSURE", "long")]), "EXPOSURE must be a number; found 'long'"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_in_little_memory_and_without_warnings(tmp_path, name):
    content, message = LIES[name]
    path = write(tmp_path / "a.fits", content)
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SpectrumFileError, match=message) as caught:
            read_spectra(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 2**23


def test_many_extensions_are_refused(tmp_path):
    with pytest.raises(SpectrumFileError, match="at most 1000 extensions"):
        read_spectra(write(tmp_path / "a.fits", primary() + table("GTI", {"START": np.zeros(1, ">f8")}) * 1001))


def test_a_bad_row_of_type_two_does_not_cost_the_others(tmp_path):
    counts = np.array([[1, 2, 3], [0, 0, 0], [4, 5, 6]], ">i4")
    rejected = []
    path = write(tmp_path / "a.fits", primary() + table("SPECTRUM", {"COUNTS": counts}))
    assert len(list(iter_spectra(path, on_reject=rejected.append))) == 2
    assert [error.place for error in rejected] == ["extension 1, row 1"]


def test_a_missing_astropy_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.fits", type_one())
    real_import = builtins.__import__

    def no_astropy(name, *arguments, **options):
        if name.startswith("astropy"):
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_astropy)
    with pytest.raises(SpectrumFileError, match=r"pip install 'xrf-transformers\[instruments\]'"):
        read_spectra(path)


def test_a_repaired_card_says_nothing_on_the_terminal(tmp_path):
    cards = [*CARDS, b"EMISNANG=          4.53672E-09 / Angle between boresight vector and emitted X-rays, degr"[:80]]
    path = write(tmp_path / "a.fits", type_one(cards=cards))
    code = f"from dataset_builder import read_spectra; print(len(read_spectra({str(path)!r})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_genuine_spectrum_of_the_moon(real_data):
    (path,) = (real_data / "formats" / "class_fits").iterdir()
    (spectrum,) = read_spectra(path)
    assert (spectrum.counts.size, spectrum.live_time_s, spectrum.gain_kev) == (1024, 1780.0, 0.027)
    assert (spectrum.instrument, spectrum.metadata["TELESCOP"]) == ("CLASS", "CHANDRAYAAN-2")
    assert spectrum.counts[:5].tolist() == [3, 0, 4, 28, 52]
