"""What a run will cost, before anything runs: (image, class) pairs, passes, FLOPs, seconds and disk space.

Every saliency method states its passes (:class:`ibsgl.attribution.Cost`). The plan multiplies them by the number of images and
by the cost of one pass. FLOPs are counted by torch, seconds are measured on this machine.
"""

from ibsgl.plan.calibration import calibrate
from ibsgl.plan.data import DataFacts, data_facts
from ibsgl.plan.jobs import Jobs
from ibsgl.plan.networks import NetworkFacts, UnitCosts, Work, flops_of, network_facts, random_network
from ibsgl.plan.run import Plan, disk_space, make_plan
from ibsgl.plan.show import show
from ibsgl.plan.steps import Step, method_work, model_steps

__all__ = [
    "DataFacts",
    "Jobs",
    "NetworkFacts",
    "Plan",
    "Step",
    "UnitCosts",
    "Work",
    "calibrate",
    "data_facts",
    "disk_space",
    "flops_of",
    "make_plan",
    "method_work",
    "model_steps",
    "network_facts",
    "random_network",
    "show",
]
