"""What of a pretrained network is trained, when, and how fast."""

from hfseg.transfer.strategies import STRATEGIES, Plan, plan_transfer

__all__ = ["STRATEGIES", "Plan", "plan_transfer"]
