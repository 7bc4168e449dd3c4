"""Text -> token shards: planned in chunks, worked on by any team, killed and continued, the same bytes in the end.

=================  ============================================================================
module             idea
=================  ============================================================================
``plan``           what will be done: sources, options and chunks, settled before it begins
``workplace``      the folder of a build under way: its lock, what is finished, the last rename
``stages``         numbered work of which what is finished stays finished
``team``           who works: this process, several, or the ranks (``ranks``) of an MPI launch
``reading``        the wanted documents of a chunk, read the same way in every stage
``duplicates``     documents that were there before
``tokens``         text -> tokens, with the places at which sentences and words begin
``chunk``          a chunk -> its shards
``building``       all of it, one after the other
=================  ============================================================================
"""

from data_pipeline.build.building import build_shards
from data_pipeline.build.plan import BuildOptions
from data_pipeline.build.progress import BuildProgress
from data_pipeline.build.summary import BuildSummary, SideSummary
from data_pipeline.build.team import LocalTeam, Team, find_team
from data_pipeline.build.tokens import tokenize

__all__ = [
    "BuildOptions",
    "BuildProgress",
    "BuildSummary",
    "LocalTeam",
    "SideSummary",
    "Team",
    "build_shards",
    "find_team",
    "tokenize",
]
