"""The Triton kernels without a GPU: their results in Triton's interpreter, their compilation, and what stands in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from semsam.ops import deformable_attention
from semsam.ops.deformable_attention import attention_form, gathered_attention, sampled_attention

triton = pytest.importorskip("triton")
CLAIMS = Path(__file__).parents[3] / "gpu" / "test_deformable_attention_cuda.py"


@pytest.mark.slow
def test_the_kernels_equal_the_plain_form_in_tritons_interpreter() -> None:
    # In a process of its own: whether Triton compiles or interprets is settled when it is imported.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CLAIMS)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, cwd=CLAIMS.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel"])
@pytest.mark.parametrize(
    ("architecture", "values"), [(90, "bf16"), pytest.param(80, "fp32", marks=pytest.mark.slow)], ids=str
)
def test_the_kernels_compile_to_machine_code_of_a_gpu(
    kernel: str, architecture: int, values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from semsam.ops import deformable_attention_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(deformable_attention_triton, kernel)
    constants = {"heads": 8, "depth": 32, "points": 4, "samples": 16}
    constants |= {"block_rows": 2, "block_samples": 16, "block_depth": 32}
    types: dict[str, Any] = dict.fromkeys(function.arg_names, "*fp32")
    types |= dict.fromkeys(deformable_attention_triton.SIZES, "i32") | dict.fromkeys(constants, "constexpr")
    types |= {name: f"*{values}" for name in ("values", "attended", "of_attended") if name in types}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(function.arg_names) if types[name][0] == "*"}
    by_index = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(function, types, by_index, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    assert compiled.asm["cubin"]
    # Whole rows of channels are fetched in words of 16 bytes, and nothing spills out of the registers.
    assert "ld.global.v4.b32" in compiled.asm["ptx"]
    assert "ld.local" not in compiled.asm["ptx"]


def test_the_plain_form_stands_in_where_triton_finds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton finds one here")
    deformable_attention.triton_works.cache_clear()
    with pytest.warns(UserWarning, match="Triton does not work"):
        assert attention_form(torch.device("cuda")) is sampled_attention
    assert attention_form(torch.device("cuda")) is sampled_attention  # Warned of once.
    assert attention_form(torch.device("cpu")) is gathered_attention
    monkeypatch.setattr(deformable_attention, "ALWAYS_PLAIN", True)
    assert attention_form(torch.device("cpu")) is sampled_attention


@pytest.mark.slow
def test_the_library_does_not_import_triton_by_itself() -> None:
    program = "import sys, semsam.model.semantic_sam; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=CLAIMS.parents[2])
