"""Plans: pure functions from a graph to a `Plan`, and the referee that plays it."""

from tiny_backprop.plan.blocks import block_starts as block_starts
from tiny_backprop.plan.blocks import plan_blocks as plan_blocks
from tiny_backprop.plan.blocks import plan_height_compressed as plan_height_compressed
from tiny_backprop.plan.blocks import plan_save_everything as plan_save_everything
from tiny_backprop.plan.budget import plan_budget as plan_budget
from tiny_backprop.plan.certificate import Certificate as Certificate
from tiny_backprop.plan.certificate import certify as certify
from tiny_backprop.plan.exact import plan_exact as plan_exact
from tiny_backprop.plan.loops.schedules import LoopChoice as LoopChoice
from tiny_backprop.plan.pareto import Pareto as Pareto
from tiny_backprop.plan.pareto import pareto as pareto
from tiny_backprop.plan.plan import Action as Action
from tiny_backprop.plan.plan import Plan as Plan
from tiny_backprop.plan.policies import plan_policy as plan_policy
from tiny_backprop.plan.search.bounds import working_set_bound as working_set_bound
from tiny_backprop.plan.why import Why as Why
from tiny_backprop.predict.materialized import Materialized as Materialized
from tiny_backprop.predict.materialized import materialize as materialize
from tiny_backprop.schedule.cost import PRESETS as PRESETS
from tiny_backprop.schedule.cost import CostModel as CostModel
from tiny_backprop.schedule.schedule import schedule as schedule
from tiny_backprop.schedule.simulate import Op as Op
from tiny_backprop.schedule.simulate import Timeline as Timeline
from tiny_backprop.schedule.simulate import simulate as simulate
