"""Is a choice worth it? Both sides trained as small models in pairs, and judged as the Krea 2 report does.

    switches --> matrix --> trainings (running) --> results --> verdicts --> findings (judging) --> page
                   ^ costs

`pleinair ablate` is its face; docs/ablations.md says how it judges.
"""
