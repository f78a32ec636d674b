"""The report: one self-contained HTML page about the runs, grids, caches and results under some folders.

sources.py finds them, results.py reads what was measured, models.py joins both, pairs.py, cache_card.py and costs.py
compute what the page says, figures.py draws it with charts.py, finding.py puts it into a sentence, sections.py and
page.py fill report.html.j2. A grid has a section of its own, made in grid/.
"""
