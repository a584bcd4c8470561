//! Points of a curve, made ready for drawing: a centred moving mean for noisy losses, thinning that keeps the
//! extremes, cutting at the edge of the axes, and the mean over seeds.

use crate::train::metrics::Record;

/// Points in the order of x.
pub(super) type Points = Vec<(f64, f64)>;

/// `y` over `x` of the records that have both, numbers that are not finite left out.
pub(super) fn points<'a>(
    records: impl IntoIterator<Item = &'a Record>,
    x: impl Fn(&Record) -> f64,
    y: impl Fn(&Record) -> Option<f64>,
) -> Points {
    let pairs = records.into_iter().filter_map(|record| Some((x(record), y(record)?)));
    pairs.filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
}

/// Width of the moving mean for a run of `records`: a fiftieth of it, odd.
pub(super) fn window(records: usize) -> usize {
    records / 50 / 2 * 2 + 1
}

/// Moving mean of y over `window` points around each. Near the start, where a loss falls steeply, the window shrinks
/// to what lies on both sides; near the end it keeps what there is.
pub(super) fn smooth(points: &[(f64, f64)], window: usize) -> Points {
    let half = window / 2;
    let mut sums = vec![0.0];
    for (_, y) in points {
        sums.push(sums[sums.len() - 1] + y);
    }
    let at = |index: usize| {
        let low = index - half.min(index);
        let high = (index + half.min(index) + 1).min(points.len());
        (points[index].0, (sums[high] - sums[low]) / (high - low) as f64)
    };
    (0..points.len()).map(at).collect()
}

/// At most `2 * buckets` points: of each bucket of neighbours the lowest and the highest, in order.
pub(super) fn thin(points: &[(f64, f64)], buckets: usize) -> Points {
    if points.len() <= 2 * buckets {
        return points.to_vec();
    }
    let mut kept = Points::new();
    for bucket in points.chunks(points.len().div_ceil(buckets)) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = bucket.iter().min_by(by_y).zip(bucket.iter().max_by(by_y));
        if let Some((&low, &high)) = ends {
            kept.push(if low.0 <= high.0 { low } else { high });
            if low != high {
                kept.push(if low.0 <= high.0 { high } else { low });
            }
        }
    }
    kept
}

/// The pieces of a polyline that lie between y = `low` and y = `high` and from x = `left` on, cut where it crosses.
pub(super) fn cut(points: &[(f64, f64)], left: f64, low: f64, high: f64) -> Vec<Points> {
    let mut pieces = Vec::new();
    let mut piece = Points::new();
    for pair in points.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        match cut_segment(from, to, left, low, high) {
            Some((start, end)) => {
                if piece.last() != Some(&start) {
                    pieces.push(std::mem::take(&mut piece));
                    piece.push(start);
                }
                piece.push(end);
            }
            None => pieces.push(std::mem::take(&mut piece)),
        }
    }
    pieces.push(piece);
    pieces.retain(|piece| piece.len() > 1);
    pieces
}

/// The part of one segment inside the limits (Liang and Barsky), or `None` if there is none.
fn cut_segment(from: (f64, f64), to: (f64, f64), left: f64, low: f64, high: f64) -> Option<((f64, f64), (f64, f64))> {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let (mut enter, mut leave) = (0f64, 1f64);
    // Each limit reads: slope * t <= room.
    for (slope, room) in [(-dx, from.0 - left), (-dy, from.1 - low), (dy, high - from.1)] {
        if slope == 0.0 {
            if room < 0.0 {
                return None;
            }
        } else if slope < 0.0 {
            enter = enter.max(room / slope);
        } else {
            leave = leave.min(room / slope);
        }
    }
    let at = |t: f64| match t {
        0.0 => from,
        1.0 => to,
        t => (from.0 + t * dx, from.1 + t * dy),
    };
    (enter <= leave).then(|| (at(enter), at(leave)))
}

/// The mean of several curves, point by point; `None` where they have no points in common. Runs of one arm are
/// evaluated at the same steps, so their points correspond; a curve that is shorter ends the mean.
pub(super) fn mean(curves: &[Points]) -> Option<Points> {
    let length = curves.iter().map(Vec::len).min().filter(|length| *length > 0)?;
    let count = curves.len() as f64;
    let at = |index: usize| {
        let sum = |axis: fn(&(f64, f64)) -> f64| curves.iter().map(|curve| axis(&curve[index])).sum::<f64>();
        (sum(|point| point.0) / count, sum(|point| point.1) / count)
    };
    Some((0..length).map(at).collect())
}
