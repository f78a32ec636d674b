"""A grid in the report: its finding, its ranking, a heat map, every run over each option, finalists with paired tests.

analysis.py finds options, noise and pairs in the ranking, figures.py chooses what heat_map.py, seed_chart.py and the
report's charts draw, finding.py puts it into sentences, sections.py joins all of it for section.html.j2.
"""
