"""Every registered method at settings small enough for a test."""

METHODS = {
    "gradient": {},
    "bottleneck": {"steps": 3, "samples": 2},
    "center": {},
    "random": {},
    "oracle": {},
    "gradcam": {},
    "gradcam_pp": {},
    "score_cam": {"chunk": 5},
    "rise": {"masks": 24, "cells": 3, "chunk": 5},
    "extremal_perturbation": {"iterations": 3},
    "integrated_gradients": {"steps": 5, "chunk": 4},
    "fullgrad": {},
}
