//! A measurement as text: what was run, the figures, and a table of the ops with their share of the roofline.

use comfy_table::{CellAlignment, Table, presets};
use patchgpt_models::benchmark::{Measurement, Op};

/// The whole text.
pub(super) fn text(measured: &Measurement) -> String {
    let Measurement { regime, patch_size, dtype, device, sequences, positions, .. } = measured;
    let preset = measured.preset.as_deref().unwrap_or("model");
    let head = format!(
        "{preset}: {} parameters, {regime} regime (K = {patch_size}), {dtype}, on {device}\n{sequences} x {positions} positions, \
         {} tokens a step; {} steps after {} of warm-up; {}\n",
        scaled(measured.parameters as f64, ""),
        measured.tokens_per_step,
        measured.steps,
        measured.warm_up_steps,
        machine(measured),
    );
    let lines = figures(measured).into_iter().map(|(name, value)| format!("  {name:<18}{value}\n"));
    let note = format!(
        "of {} profiled steps of {:.4} s each, the mean. roofline: the least time that the measured ceilings allow, call by call, \
         over the time taken; bytes are the least that must move, so a kernel whose data stay in the cache may exceed 100%",
        measured.profiled_steps, measured.profiled_step_seconds
    );
    format!("{head}\n{}\n{}\n{note}", lines.collect::<String>(), ops(measured))
}

fn machine(measured: &Measurement) -> String {
    let machine = &measured.machine;
    let processor = machine.processor.as_deref().unwrap_or("processor unknown");
    format!("{processor}, {} cores, {}", machine.cores, machine.system)
}

/// Name and value of each figure.
fn figures(measured: &Measurement) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("tokens/s", format!("{:.1}", measured.tokens_per_second)),
        (
            "step",
            format!(
                "{:.4} s (median; {:.4} to {:.4}), of which {:.4} s waiting for the batch",
                measured.step_seconds, measured.step_seconds_min, measured.step_seconds_max, measured.loading_seconds
            ),
        ),
    ];
    if let Some(operations) = measured.graph_operations {
        let host = format!(
            "{:.3} ms a step, until one graph of {operations} operations is launched",
            1e3 * measured.host_seconds
        );
        lines.push(("host", host));
    }
    // Below a tenth of a core it is the system itself.
    if let Some(cores) = measured.others_cores.filter(|&cores| cores > 0.1) {
        lines.push(("machine", format!("busy: other processes kept {cores:.1} cores from this measurement")));
    }
    let share = match (measured.share_of_peak, measured.peak_flops_per_second) {
        (Some(share), Some(peak)) => {
            format!(", {:.1}% of the {} that multiply-adds reach here", 100.0 * share, scaled(peak, "FLOP/s"))
        }
        _ => String::new(),
    };
    lines.push(("model FLOP/s", format!("{}{share}", scaled(measured.model_flops_per_second, "FLOP/s"))));
    if let Some(bandwidth) = measured.copy_bytes_per_second {
        lines.push(("memory bandwidth", format!("{}, reading and writing in a copy", scaled(bandwidth, "B/s"))));
    }
    let memory = match measured.peak_memory_bytes {
        Some(bytes) => format!("{} ({})", scaled(bytes as f64, "B"), measured.peak_memory),
        None => "not told by this system".to_owned(),
    };
    lines.push(("peak memory", memory));
    if let Some(bytes) = measured.peak_tensor_bytes {
        lines.push(("in tensors", scaled(bytes as f64, "B")));
    }
    lines
}

fn ops(measured: &Measurement) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_header(["op", "calls", "seconds", "of step", "GFLOP/s", "GB/s", "roofline"]);
    let whole = measured.profiled_step_seconds;
    let share = |seconds: f64| format!("{:.1}%", 100.0 * seconds / whole);
    for op in &measured.ops {
        let Op { name, calls, seconds, flops, bytes, floor_seconds } = op;
        let roofline = floor_seconds.map_or("–".to_owned(), |floor| format!("{:.0}%", 100.0 * floor / seconds));
        table.add_row([
            (*name).to_owned(),
            format!("{calls:.0}"),
            format!("{seconds:.4}"),
            share(*seconds),
            format!("{:.1}", flops / seconds / 1e9),
            format!("{:.1}", bytes / seconds / 1e9),
            roofline,
        ]);
    }
    let outside = measured.outside_ops_seconds;
    table.add_row(["outside ops", "", &format!("{outside:.4}"), &share(outside), "", "", ""]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// A number with the prefix of its size: `191.2 GFLOP/s`, `13.9 M`.
fn scaled(value: f64, unit: &str) -> String {
    let steps = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match steps.into_iter().find(|(size, _)| value >= *size) {
        Some((size, prefix)) => format!("{:.1} {prefix}{unit}", value / size),
        None => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::scaled;

    #[test]
    fn numbers_take_the_prefix_of_their_size() {
        assert_eq!(scaled(1.912e11, "FLOP/s"), "191.2 GFLOP/s");
        assert_eq!(scaled(13_900_000.0, ""), "13.9 M");
        assert_eq!(scaled(12.0, "B"), "12 B");
    }
}
