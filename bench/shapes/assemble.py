"""Training states to the checkpoint folder."""

import argparse
from pathlib import Path

from diffusion_rt.bench.shapes import model, text, vae
from diffusion_rt.bench.shapes.train import load_unet


def assemble(states: Path, output: Path) -> int:
    """Write the checkpoint of what is trained so far; returns the UNet's steps."""
    unet, steps = load_unet(states / "unet.pt")
    decoder = states / "decoder.pt"
    autoencoder = vae.load(decoder if decoder.exists() else states / "vae.pt")
    model.write(output, text.load_texts(states / "text.pt")[0], unet, autoencoder)
    return steps


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    print(f"{options.output}: UNet after {assemble(options.states, options.output)} steps")


if __name__ == "__main__":
    main()
