"""Compiles tiny steps for a GPU that is not there; a process of its own, since jax must not have started before.

    python -m tests.compile_for_gpu spcl:bfloat16 mae:bfloat16 spcl:float32

Prints a line of JSON each: the name, calls of cuDNN's fused attention in the compiled program, forward and backward,
and the error where it does not compile.
"""

import json
import sys

import jax

from cxrjax import initial, methods, parallel, plan, stand_ins
from cxrjax.accelerators import aot, hardware
from cxrjax.step import program
from tests import runs

TARGET = hardware.parse("h100")


def compiled(name: str, dtype: str) -> str:
    """The optimised program of one training step of a smoke config, and of its initialisation lowered."""
    config = initial.of_run(runs.config(name, model__dtype=dtype, batch_size=8))
    for part in ("text", "similarity"):
        if "dtype" in config.get(part, {}):
            config[part].dtype = dtype
    mesh = parallel.run_mesh(config, aot.devices(TARGET))
    with stand_ins.of(config) as standing_in, aot.answering_for(TARGET):
        method = methods.make(standing_in, 6)
        made = program(standing_in, method, mesh, 6, 40)
        made.init.lower()
        batch = plan.abstract_batch(method, config.batch_size, mesh)
        return aot.compiled(made.step.lower(made.abstract, batch), TARGET).as_text()


if __name__ == "__main__":
    aot.devices(TARGET)
    for word in sys.argv[1:]:
        said = {"name": word, "error": ""}
        try:
            text = compiled(*word.split(":"))
            said["backward"] = text.count('custom_call_target="__cudnn$fmhaSoftmaxBackward"')
            said["forward"] = text.count('custom_call_target="__cudnn$fmhaSoftmax"')
        except Exception as error:
            said["error"] = f"{type(error).__name__}: {error}"[:2000]
        print(json.dumps(said), flush=True)
        jax.clear_caches()
