"""Rewards: what pictures are worth to those who asked for them, as numbers that training may climb.

    prompt --parser or language model--> requirements --judge--> rubric       \
    picture --OCR--> letters beside those quoted ------------> writing         \
    picture --classifier of faults --------------------------> artefact         > RewardMix --> Assessment --> training
    picture, prompt --model of what was preferred -----------> preference      /
    group of pictures --features ----------------------------> diversity      /
                                        a reward held out ----> gold, logged, never climbed

Any of them may stand behind HTTP (`server`, `remote`) and be remembered (`kept`).
"""
