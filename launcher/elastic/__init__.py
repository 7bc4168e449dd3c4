"""Runs that outlive their machines: one coordinator, one agent on every node, workers that the agents fork.

coordinator.py decides who computes what, round after round; gathering.py knows who is there; agent.py starts and
watches the workers of a node, keeper.py the agent; layouts.py fits the layout to the world; hangs.py finds who is late;
wire.py is how they talk.
"""
