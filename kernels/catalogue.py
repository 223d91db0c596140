"""Every kernel there is: its source, constants, parameters, and what it may cost on a chip."""

from diffusion_rt.kernels import (
    attention_plugin,
    attention_sm90,
    attention_tactics,
    conv,
    conv_sm90,
    elementwise,
    embedding,
    gemm,
    gemm_sm90,
    group_norm,
    guided_step,
    layer_norm,
    pixels,
    prepare,
    select_row,
    select_rows,
    timestep_embedding,
)
from diffusion_rt.kernels.variant import ARCHS, SOURCES, Variant

__all__ = ["ARCHS", "CATALOGUE", "SOURCES", "Variant"]

_ELEMENTS = {"float16": ("half", 2), "float32": ("float", 4)}


def _of_elements(dtype: str) -> tuple[Variant, ...]:
    """The kernels that read or write the model's own numbers."""
    element, nbytes = _ELEMENTS[dtype]
    constants = (("ELEMENT", element),)
    return (
        Variant(
            name=f"prepare.{dtype}",
            kernel="prepare",
            source="prepare.cu",
            constants=constants,
            parameters=prepare.parameters(nbytes),
            registers=40,
        ),
        Variant(
            name=f"guidance_statistics.{dtype}",
            kernel="guidance_statistics",
            source="guidance_statistics.cu",
            constants=constants,
            parameters=guided_step.statistics_parameters(nbytes),
            registers=48,
            shared_bytes=32,
        ),
        Variant(
            name=f"guided_step.{dtype}",
            kernel="guided_step",
            source="guided_step.cu",
            constants=constants,
            parameters=guided_step.parameters(nbytes),
            registers=48,
            shared_bytes=32,
        ),
    )


CATALOGUE = {
    variant.name: variant
    for variant in (
        *_of_elements("float16"),
        *_of_elements("float32"),
        *attention_sm90.VARIANTS,
        *attention_tactics.VARIANTS,
        *attention_plugin.VARIANTS,
        *conv.VARIANTS,
        *conv_sm90.VARIANTS,
        *elementwise.VARIANTS,
        *embedding.VARIANTS,
        *gemm.VARIANTS,
        *group_norm.VARIANTS,
        *layer_norm.VARIANTS,
        *pixels.VARIANTS,
        *select_row.VARIANTS,
        *timestep_embedding.VARIANTS,
        *gemm_sm90.VARIANTS,
        Variant(
            name="select_rows",
            kernel="select_rows",
            source="select_rows.cu",
            constants=(),
            parameters=select_rows.PARAMETERS,
            registers=40,
        ),
    )
}
