"""Installs the framework: `make setup`, or its three lines by hand (README, "By hand"); after a change of packages `make lock`."""

from setuptools import find_packages, setup

setup(
    name="gaussian-head-avatars",
    version="0.1.0",
    description="Trains, drives and measures Gaussian head avatars",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lib", "lib.*", "preprocess", "preprocess.*"]),
    install_requires=[
        "torch>=2.8", "numpy>=2", "opencv-python-headless>=4.10", "pyyaml>=6", "pydantic>=2.7", "tqdm", "tensorboard>=2.21",
        "roma>=1.7", "jaxtyping>=0.3", "av>=14", "setuptools",
    ],
    extras_require={
        "dev": ["pytest", "hypothesis", "beartype", "ruff", "scikit-image", "submitit>=1.5.4,<2"],
        "cluster": ["submitit>=1.5.4,<2"],
        "viewer": ["viser>=1.1,<1.2"],
        # For torch without a triton of its own (CPU builds): the tests run the kernels under its interpreter. CUDA builds pin another.
        "interpreter": ['triton==3.7.1; sys_platform == "linux" and platform_machine == "x86_64"'],
    },
)
