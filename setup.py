"""Package metadata. Ranges live here; the exact versions that are tested live in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="partialseg",
    version="0.1.0",
    description="One multi-organ CT segmentation network from datasets that each label only some organs",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[
        *find_packages(include=["partialseg", "partialseg.*"]),
        "partialseg.data_cards",
        "partialseg.configs",
    ],
    # Cards and configs live at the top of the repository, and inside the package once it is installed.
    package_dir={"partialseg.data_cards": "data_cards", "partialseg.configs": "configs"},
    package_data={
        "partialseg.data_cards": ["*.md"],
        "partialseg.configs": ["*.yaml"],
        "partialseg.data": ["*.jinja"],
        "partialseg.report": ["*.jinja"],
    },
    python_requires=">=3.10,<3.13",
    install_requires=[
        "tensorflow>=2.17,<2.18",
        "tensorflow-io>=0.37.1,<0.38",
        "keras>=3.12,<3.16",
        "numpy>=1.26,<2",
        "scipy>=1.11",
        "nibabel>=5.2",
        "pydicom>=3.0",
        "Pillow>=10",
        "pydantic>=2.7",
        "PyYAML>=6.0",
        "typer>=0.12",
        "rich>=13.7",
        "pandas>=2.2",
        "tabulate>=0.9",
        "Jinja2>=3.1",
        "matplotlib>=3.8",
        "setuptools<81",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.17,<2.18"],
        "notebooks": ["jupyterlab>=4.2", "jupytext>=1.16"],
        "serving": ["tensorflow-serving-api>=2.17,<2.18"],
        "bench": ["torch>=2.3", "nnunetv2>=2.5", "monai>=1.4", "surface-distance", "MedPy"],
        "jax": ["jax>=0.5,<0.6"],
        "torch": ["torch>=2.3"],
        "test": [
            "jax>=0.5,<0.6",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "jupytext>=1.16",
            "nbclient>=0.10",
            "nbmake>=1.5",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            "packaging>=24",
            "ruff>=0.6",
        ],
    },
    entry_points={"console_scripts": ["partialseg=partialseg.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
