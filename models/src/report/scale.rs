//! What a run of a given size can show, in words. Source: Shao, Meng, Zhou, arXiv 2407.12665, whose 370M model is on a
//! par at equal data from about 300 to 450 tokens per parameter on (patch size 4, two thirds of the tokens as patches)
//! and worse below.

use super::number;

/// Tokens per parameter from which on the paper's effect can be expected.
const PARITY: f64 = 300.0;

/// The sentences for a model of `parameters` that read `tokens`.
pub(super) fn sentences(parameters: u64, tokens: f64) -> String {
    let ratio = tokens / parameters.max(1) as f64;
    let read = format!("{} training tokens per parameter were read here", number::short(ratio));
    if ratio < PARITY {
        format!(
            "What a run of this size can show: {read}. That is enough for the mechanics: patches read tokens several \
             times faster, and the loss jumps at the switch from patches to tokens and recovers. It is not enough for the \
             paper's gain, which needs hundreds of training tokens per parameter; at equal compute a run like this one may \
             end behind token-level training: in arXiv 2407.12665 a 370M model trained on equal data is worse with patches below \
             roughly 300 to 450 tokens per parameter, and better only above."
        )
    } else {
        format!(
            "What a run of this size can show: {read}, which is where the paper (arXiv 2407.12665) begins to see \
             patches win: its 370M model trained on equal data is worse with patches below roughly 300 to 450 tokens \
             per parameter, and better above. Below that range a run shows only the mechanics: the speed of patches, \
             the jump at the switch and the recovery."
        )
    }
}
