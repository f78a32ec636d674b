"""The report: one self-contained HTML page about the runs, grids, caches and results under some folders.

sources.py finds them, results.py reads measures, models.py joins both, pairs.py, cache_card.py and costs.py compute the
numbers, figures.py draws them with charts.py, finding.py writes the first sentence, sections.py and page.py fill
report.html.j2. A grid has its own section, made in grid/.
"""
