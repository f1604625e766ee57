"""Runs `scripts/run_msm.py` with FSDP2 on the CPU, over gloo: `accelerate launch ... tests/fsdp_on_cpu.py OPTIONS`.

accelerate reads the FSDP settings of a launch on the CPU, too, but then distributes by DDP. Here it keeps to them.
"""

import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

initialize = AcceleratorState.__init__


def initialize_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)  # as on GPUs
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = initialize_with_fsdp
    script = Path(__file__).resolve().parents[1] / "scripts" / "run_msm.py"
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")
