"""Packaging: the flat modules that Hub repositories also carry, and the dataset builder."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="xrf-transformers",
    version="0.1.0",
    description="Masked spectrum models for X-ray fluorescence (XRF) on the Hugging Face stack",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    py_modules=sorted(path.stem for path in Path(__file__).parent.glob("*_xrf.py")),
    packages=find_packages(include=["dataset_builder", "dataset_builder.*"]),
    package_data={"dataset_builder": ["recipes/*.yaml"]},
    entry_points={"console_scripts": ["xrf-data = dataset_builder.__main__:command_line"]},
    install_requires=[
        "torch>=2.11,<2.14",
        "transformers>=5.17,<6",
        "datasets>=5.2,<6",
        "accelerate>=1.15,<2",
        "peft>=0.21",
        "evaluate>=0.4.6",
        "huggingface-hub>=1.31,<3",
        "safetensors>=0.8",
        "numpy>=2",
        "scikit-learn>=1.6",  # ridge baselines and the probe, and what evaluate imports
        "scipy>=1.14",  # the error function, least squares and peak finding
        "pyyaml>=6",  # corpus recipes and dataset cards
        "threadpoolctl>=3.5",  # the simulator's matrix products on one thread (comes with scikit-learn)
        "xraylib>=4.1",  # X-ray line energies, cross-sections: physics as data
        "matplotlib>=3.10",  # figures
        "tensorboard>=2.19",  # the default tracker
        "jinja2>=3.1",  # model cards from templates
    ],
    extras_require={
        "instruments": ["astropy>=6"],  # FITS files
        "onnx": ["onnx>=1.23", "onnxruntime>=1.32", "onnxscript>=0.7"],  # scripts/export_onnx.py
        "ray": ["ray[data]>=2.60"],  # predictions on many machines
        "references": ["fisx>=1.3", "pdz-tool>=0.2.5"],  # what tests compare with; fisx needs a C++ compiler
        "dev": ["astropy>=6", "hypothesis>=6.130", "pytest>=9", "pytest-xdist>=3.8", "ruff>=0.17", "pre-commit>=4"],
    },
)
