"""Labels, units and definitions of every reported quantity, so that each stands beside its name. Imports no torch.

Section letters refer to the method pages listed in docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A reported quantity: its label, its unit and its definition in one sentence."""

    label: str
    unit: str
    definition: str


METRICS: dict[str, Metric] = {
    "l0": Metric("L0", "features a token", "Mean number of features with activation > 0, over held-out tokens."),
    "l1": Metric(
        "L1", "normalised units", "Mean over held-out tokens of the summed activations, decoder norms folded in."
    ),
    "mse": Metric(
        "MSE",
        "normalised units",
        "Squared error summed over dimensions, mean over held-out tokens, in units in which activations "
        "have the norm that the normaliser gives them (mean_norm: sqrt(d_in) on average).",
    ),
    "nmse": Metric(
        "NMSE (FVU)",
        "fraction",
        "Squared error divided by the total variance of the same tokens around their mean: 0 is perfect, "
        "1 is what predicting the mean activation scores.",
    ),
    "explained_variance": Metric("Explained variance", "fraction", "1 - NMSE, pooled over tokens and dimensions."),
    "explained_variance_centered": Metric(
        "Explained variance, bias forgiven",
        "fraction",
        "1 - (error - squared mean error) / total variance: what is explained if a constant offset is forgiven.",
    ),
    "fvu_zero": Metric("Error / squared norm", "fraction", "Squared error divided by the squared norm, not centred."),
    "gamma": Metric(
        "Shrinkage gamma",
        "ratio",
        "Q/P with Q = sum |xhat|^2 and P = sum <x, xhat>: 1 is unbiased, below 1 the reconstruction is too short.",
    ),
    "gamma_centered": Metric(
        "Centred gamma", "ratio", "The same ratio with x and xhat centred on their held-out means."
    ),
    "ce_clean": Metric("CE, clean", "nats a token", "Next-token cross-entropy of the untouched model."),
    "ce_sae": Metric("CE with SAE", "nats a token", "The same with the site replaced by the reconstruction."),
    "ce_zero": Metric("CE, zero ablation", "nats a token", "The same with the site set to zero."),
    "ce_mean": Metric("CE, mean ablation", "nats a token", "The same with the site set to its held-out mean."),
    "ce_recovered": Metric(
        "CE recovered (zero)", "fraction", "(CE zero - CE with SAE) / (CE zero - CE clean): 1 is lossless."
    ),
    "ce_recovered_mean": Metric(
        "CE recovered (mean)", "fraction", "(CE mean - CE with SAE) / (CE mean - CE clean): 1 is lossless."
    ),
    "delta_ce": Metric("Delta CE", "nats a token", "CE with SAE - CE clean: what the splice costs the model."),
    "kl": Metric("KL", "nats a token", "KL(clean || spliced) of the next-token distributions."),
    "dead_fraction": Metric("Dead", "fraction", "Share of features that never fire on the held-out tokens."),
    "features_above_1e-2": Metric(
        "Features > 1e-2", "features", "Features active on more than 1 % of held-out tokens (Wilson interval)."
    ),
    "features_above_1e-3": Metric(
        "Features > 1e-3", "features", "Features active on more than 0.1 % of held-out tokens (Wilson interval)."
    ),
    "features_above_0.1": Metric(
        "Features > 0.1", "features", "Features active on more than 10 % of held-out tokens (Wilson interval)."
    ),
    "dense_l0_share": Metric(
        "Dense share of L0",
        "fraction",
        "Share of all firings that belongs to features active on more than 10 % of tokens.",
    ),
    "unexplained_share": Metric(
        "Unexplained by screens",
        "fraction",
        "Of the features active on more than 10 % of tokens, the share for which no trivial cause was found: position, "
        "token, frequency, norm, entropy, document length, mean direction, antipode.",
    ),
    "pathological_share": Metric(
        "Pathological",
        "fraction",
        "Of the features active on more than 10 % of tokens that are rated or scored, the share with a consistency of "
        "at most 2, or a score below 0.1 and a screen R^2 below 0.2; where none is rated or scored, the share that is "
        "unexplained by screens.",
    ),
    "pearson": Metric(
        "Interpretation score",
        "correlation",
        "Pearson's correlation of the activations that are predicted from a feature's explanation with the true ones, "
        "over all scored tokens; mean over features, an undefined correlation counts as 0.",
    ),
    "spearman": Metric(
        "Interpretation score, ranks", "correlation", "The same with Spearman's correlation (ranks, ties averaged)."
    ),
    "pearson_shuffled": Metric(
        "Shuffled explanations", "correlation", "The same with another feature's explanation: should be near 0."
    ),
    "pearson_oracle": Metric(
        "Oracle simulator", "correlation", "The same with the true activations on the judge's scale: the ceiling."
    ),
    "pearson_token_mean": Metric(
        "Token-mean table",
        "correlation",
        "The same when each token gets its id's mean activation in the documents that explanations are made from.",
    ),
    "detection": Metric(
        "Detection",
        "balanced accuracy",
        "How well a judge tells by the explanation on which windows of text the feature is active; 0.5 is chance.",
    ),
    "fuzzing": Metric(
        "Fuzzing",
        "balanced accuracy",
        "How well a judge tells by the explanation whether the right tokens are marked; 0.5 is chance.",
    ),
    "failed_share": Metric(
        "Failed", "fraction", "Share of the sampled features without a score because a judge failed."
    ),
    "probe_loss": Metric(
        "Probe loss",
        "nats a text",
        "Cross-entropy on held-out texts of a logistic regression on the one feature (pre-activation) that has the "
        "smallest on the texts it is fitted to; mean over tasks.",
    ),
    "probe_accuracy": Metric("Probe accuracy", "fraction", "Share of held-out texts that the same probe gets right."),
    "probe_loss_train": Metric(
        "Probe loss, in-sample",
        "nats a text",
        "The same probe's loss on the texts that the feature was chosen on: the best of many, it flatters.",
    ),
    "probe_loss_post": Metric(
        "Probe loss, post-activations", "nats a text", "Probe loss on feature activations instead of pre-activations."
    ),
    "dense_probe_loss": Metric(
        "Dense probe loss", "nats a text", "The same of a logistic regression on all dimensions of the activation."
    ),
    "random_probe_loss": Metric(
        "Random probe loss", "nats a text", "Probe loss of as many random directions as the SAE has features."
    ),
    "neuron_probe_loss": Metric(
        "Single-dimension probe loss", "nats a text", "Probe loss of the dimensions of the activation themselves."
    ),
    "pca_probe_loss": Metric(
        "Principal-component probe loss",
        "nats a text",
        "Probe loss of the principal components of the held-out activations.",
    ),
    "probe_gain": Metric(
        "Below random directions", "nats a text", "Random probe loss - probe loss, paired by task: above 0 is better."
    ),
    "sparse_accuracy_1": Metric(
        "1-sparse accuracy",
        "fraction",
        "Held-out accuracy of an L2-penalised logistic regression on the k features whose mean differs most between "
        "the classes (SAEBench), here k = 1; mean over tasks.",
    ),
    "sparse_accuracy_2": Metric("2-sparse accuracy", "fraction", "The same with k = 2."),
    "sparse_accuracy_5": Metric("5-sparse accuracy", "fraction", "The same with k = 5."),
    "sparse_accuracy_16": Metric("16-sparse accuracy", "fraction", "The same with k = 16."),
    "effect_sparsity": Metric(
        "Effect sparsity",
        "fraction",
        "Mean over ablations of (L1 / L2)^2 / (V T) of the changes of the logits when one active feature is taken out "
        "at one token: the effective share of the V T pairs of vocabulary entry and position (T = 16, from that token "
        "on) that are affected; each position's median is subtracted.",
    ),
    "effect_sparsity_weighted": Metric(
        "Effect sparsity, weighted", "fraction", "The same mean, weighted by the activation of the feature."
    ),
    "effect_sparsity_random": Metric(
        "Random directions", "fraction", "The same for random directions that are as long as what a feature adds."
    ),
    "effect_sparsity_difference": Metric(
        "Less random directions",
        "fraction",
        "Effect sparsity of features less that of random directions at the same positions; below 0: sparser.",
    ),
    "effect_sparsity_neuron": Metric(
        "Coordinates", "fraction", "The same for single coordinates of the site, set to their mean."
    ),
    "effect_sparsity_pca": Metric(
        "Principal components", "fraction", "The same for components along principal directions, set to their mean."
    ),
    "undefined_share": Metric(
        "Without effect", "fraction", "Share of the ablations whose effect is too small (L2 below 1e-6) for a sparsity."
    ),
    "loss_effect": Metric(
        "Effect on loss",
        "nats a token",
        "Mean over ablations of the rise of the next-token cross-entropy, averaged over the T positions.",
    ),
    "first_order_effect": Metric(
        "Effect on loss, first order",
        "nats a token",
        "The same from the gradient of the loss, over every active feature at the positions.",
    ),
    "first_order_correlation": Metric(
        "First order and exact",
        "correlation",
        "Pearson's correlation of the first-order with the exact effect on the loss, over ablations.",
    ),
    "cause": Metric(
        "Cause",
        "fraction",
        "Share of the prompts for an attribute that are answered with the source entity's value after it was swapped; "
        "mean over templates, attributes, types. Without a method's name: SAE features in a learned mask (MDBM).",
    ),
    "isolate": Metric(
        "Isolate", "fraction", "Share of the prompts for the other attributes whose answer stays; same means."
    ),
    "disentangle": Metric("Disentangle", "fraction", "(Cause + Isolate) / 2: 0.5 for changing nothing, or everything."),
    "disentangle_entity": Metric("Disentangle, new entities", "fraction", "The same on entities not trained on."),
    "disentangle_context": Metric("Disentangle, new contexts", "fraction", "The same in templates not trained on."),
    "svm_cause": Metric("Cause, SVM", "fraction", "Cause with the features that a linear classifier chooses."),
    "svm_isolate": Metric("Isolate, SVM", "fraction", "Isolate with the same features."),
    "svm_disentangle": Metric("Disentangle, SVM", "fraction", "Disentangle with the same features."),
    "sufficiency": Metric(
        "Sufficiency",
        "fraction",
        "Mean logit difference with reconstructions in the place of the activations / that of the clean model, on IOI "
        "prompts; mean over places. 1 is best.",
    ),
    "necessity": Metric(
        "Necessity",
        "fraction",
        "1 - |m - i| / |m - c|: mean logit differences with the mean activation (m), with that and what the dictionary "
        "leaves over (i), and of the clean model (c); mean over places. 1 is best, 0 for no features.",
    ),
    "edit_success": Metric(
        "Edit success, 2 features",
        "fraction",
        "Share of IOI prompts whose likeliest next token, after at most 2 features are exchanged, is that of true "
        "patching of the counterfactual; mean over attributes that a place carries, then places.",
    ),
    "edit_success_32": Metric("Edit success, 32 features", "fraction", "The same with at most 32 features."),
    "f1": Metric(
        "F1, one feature",
        "fraction",
        "F1 on test prompts of the feature that is best on training prompts for a value of an IOI attribute; mean over "
        "values, attributes, places.",
    ),
    "f1_union": Metric("F1, union", "fraction", "The same of the best 1 to 10 features together."),
    "mean_activation": Metric(
        "Mean activation",
        "normalised units",
        "Median over features (firing on >= 50 held-out tokens) of the mean activation when active, "
        "decoder norm folded in.",
    ),
    "activation_spread": Metric(
        "Activation spread", "decades", "Standard deviation over the same features of log10 mean activation."
    ),
}
