"""What a run will cost, before anything runs: (image, class) pairs, passes, FLOPs, seconds and disk space.

Every saliency method states its passes (:class:`ibsgl.attribution.Cost`). The plan multiplies them by the number of images and
by the cost of one pass. FLOPs are counted by torch. Seconds are measured on this machine, read from the profile of another
device, or estimated from a card's published peak.
"""

from ibsgl.plan.calibration import calibrate
from ibsgl.plan.cards import CARDS, CardEstimate, card_named
from ibsgl.plan.data import DataFacts, data_facts
from ibsgl.plan.jobs import Jobs
from ibsgl.plan.networks import NetworkFacts, UnitCosts, Work, flops_of, network_facts, random_network
from ibsgl.plan.profile import DeviceProfile, ProfiledDevice
from ibsgl.plan.run import Plan, disk_space, make_plan
from ibsgl.plan.show import show
from ibsgl.plan.steps import Step, method_work, model_steps
from ibsgl.plan.timing import Timing

__all__ = [
    "CARDS",
    "CardEstimate",
    "DataFacts",
    "DeviceProfile",
    "Jobs",
    "NetworkFacts",
    "Plan",
    "ProfiledDevice",
    "Step",
    "Timing",
    "UnitCosts",
    "Work",
    "calibrate",
    "card_named",
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
