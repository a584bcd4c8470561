//! One line chart as SVG, drawn by Plotters at four times its shown size (Plotters rounds to whole pixels) and
//! coloured by the style sheet (see [`super::ink`]). The axes hold the data after the first fortieth of the run: the
//! steep start, where a loss falls from that of a uniform guess, is cut at the upper edge instead of flattening the
//! rest.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::{Axis, Unit};
use super::curve::{self, Points};
use super::ink::Ink;
use crate::error::{Error, Result};

/// Drawn pixels for each shown one.
const ZOOM: i32 = 4;
/// Points of a thinned curve for each hundred shown pixels.
const POINTS_PER_HUNDRED: usize = 55;

/// Shown width that the names of two stages need between their switches.
const STAGE_NAME: i32 = 220;

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Raw values or single seeds behind the line that counts.
    Faint,
    /// The line that counts.
    Solid,
    /// A line whose points are few and marked.
    Marked,
}

/// One curve.
pub(super) struct Line {
    pub(super) ink: Ink,
    pub(super) look: Look,
    pub(super) points: Points,
}

/// Where the y axis starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bottom {
    Zero,
    Lowest,
}

/// A line between two stages and their names.
pub(super) struct Switch {
    pub(super) x: f64,
    pub(super) before: String,
    pub(super) after: String,
}

/// What to draw. Points are in base units; `x_units` and `y_units` say what they are divided by on the axes.
pub(super) struct Chart<'a> {
    /// What a reader who cannot see it is told.
    pub(super) label: &'a str,
    /// Shown width and height in pixels.
    pub(super) size: (i32, i32),
    pub(super) x_units: &'a [Unit],
    pub(super) y_units: &'a [Unit],
    /// Name of the y axis, before its unit.
    pub(super) y_name: &'a str,
    pub(super) bottom: Bottom,
    /// x from which on to draw; zero but for an enlarged part.
    pub(super) left: f64,
    pub(super) lines: Vec<Line>,
    /// Where stages meet, from left to right.
    pub(super) switches: Vec<Switch>,
}

/// An SVG, and whether something above its upper edge was cut.
pub(super) struct Drawing {
    pub(super) svg: String,
    pub(super) cut: bool,
}

/// Limits of the axes in base units.
struct Limits {
    left: f64,
    right: f64,
    low: f64,
    high: f64,
}

impl Chart<'_> {
    /// Draws the chart; `None` where there is nothing to draw.
    ///
    /// # Errors
    /// Whatever Plotters reports.
    pub(super) fn draw(&self) -> Result<Option<Drawing>> {
        let Some(limits) = self.limits() else {
            return Ok(None);
        };
        let mut svg = String::new();
        self.draw_into(&mut svg, &limits).map_err(|error| {
            Error::Metrics(format!("the chart `{}` of the report cannot be drawn: {error}", self.label))
        })?;
        // The page is HTML: no name space, and a size that follows the column.
        let body = svg.split_once('>').map_or("", |(_, body)| body);
        let (width, height) = (self.size.0 * ZOOM, self.size.1 * ZOOM);
        let label = super::page::escape(self.label);
        let svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">{body}");
        let above = |line: &Line| line.points.iter().any(|&(x, y)| x >= limits.left && y > limits.high);
        Ok(Some(Drawing { svg, cut: self.lines.iter().any(above) }))
    }

    fn limits(&self) -> Option<Limits> {
        let left = self.left;
        let all = || self.lines.iter().flat_map(|line| &line.points).filter(|(x, _)| *x >= left);
        let right = all().map(|point| point.0).fold(left, f64::max);
        let settled = left + (right - left) / 40.0;
        let shown = all().filter(|point| left > 0.0 || point.0 >= settled).map(|point| point.1);
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
        if right <= left || low > high {
            return None;
        }
        let low = if self.bottom == Bottom::Zero { low.min(0.0) } else { low };
        let room = match high - low {
            0.0 => high.abs().max(1e-12) * 0.1,
            span => span * 0.05,
        };
        let low = if self.bottom == Bottom::Zero { low } else { low - room };
        Some(Limits { left, right, low, high: high + room })
    }

    fn draw_into(&self, svg: &mut String, limits: &Limits) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let (width, height) = (self.size.0 * ZOOM, self.size.1 * ZOOM);
        let root = SVGBackend::with_string(svg, (width as u32, height as u32)).into_drawing_area();
        let x = Axis::new(limits.left, limits.right, self.x_units, self.size.0 as usize / 110);
        let y = Axis::new(limits.low, limits.high, self.y_units, self.size.1 as usize / 55);
        let x_name = x.unit_name();
        let y_name = match y.unit_name() {
            "" => self.y_name.to_owned(),
            unit => format!("{} ({unit})", self.y_name),
        };
        let mut chart = ChartBuilder::on(&root)
            .margin_top(30 * ZOOM)
            .margin_right(14 * ZOOM)
            .x_label_area_size(44 * ZOOM)
            .y_label_area_size(50 * ZOOM)
            .build_cartesian_2d(x, y)?;
        let stroke = |ink: Ink, width: i32| ink.color().stroke_width((width * ZOOM / 4) as u32);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(stroke(Ink::Grid, 4))
            .axis_style(stroke(Ink::Axis, 4))
            .label_style(text(13))
            .axis_desc_style(text(13))
            .x_desc(x_name)
            .draw()?;
        root.draw_text(&y_name, &text(13), (4 * ZOOM, 4 * ZOOM))?;
        let mut previous = chart.backend_coord(&(limits.left, limits.high)).0;
        let shown = |switch: &&Switch| switch.x > limits.left && switch.x < limits.right;
        for switch in self.switches.iter().filter(shown) {
            let ends = [(switch.x, limits.low), (switch.x, limits.high)];
            chart.draw_series(LineSeries::new(ends, stroke(Ink::Switch, 5)))?;
            let place = chart.backend_coord(&ends[1]);
            self.name_stages(&root, switch, place, previous)?;
            previous = place.0;
        }
        for line in &self.lines {
            let (style, points) = (self.style(line), self.thinned(line));
            for piece in curve::cut(&points, limits.left, limits.low, limits.high) {
                chart.draw_series(LineSeries::new(piece, style))?;
            }
            if line.look == Look::Marked {
                let inside = |&&(x, y): &&(f64, f64)| x >= limits.left && y >= limits.low && y <= limits.high;
                let mark = |&point| Circle::new(point, 3 * ZOOM, line.ink.color().filled());
                chart.draw_series(points.iter().filter(inside).map(mark))?;
            }
        }
        root.present()
    }

    fn style(&self, line: &Line) -> ShapeStyle {
        let color = line.ink.color();
        match line.look {
            Look::Faint => color.mix(0.28).stroke_width(ZOOM as u32),
            Look::Solid | Look::Marked => color.stroke_width(2 * ZOOM as u32),
        }
    }

    fn thinned(&self, line: &Line) -> Points {
        curve::thin(&line.points, self.size.0 as usize * POINTS_PER_HUNDRED / 100)
    }

    /// Names the stages on both sides of a switch at `place`, where there is room: not in a small chart, and not
    /// close to the switch before, whose own right side then has the name.
    fn name_stages(
        &self,
        root: &DrawingArea<SVGBackend<'_>, Shift>,
        switch: &Switch,
        (pixel, top): (i32, i32),
        previous: i32,
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        if self.size.0 < 600 || pixel - previous < STAGE_NAME * ZOOM {
            return Ok(());
        }
        let above = |side| text(12).pos(Pos::new(side, VPos::Bottom));
        let (gap, y) = (8 * ZOOM, top - 3 * ZOOM);
        root.draw_text(&switch.before, &above(HPos::Right), (pixel - gap, y))?;
        root.draw_text(&switch.after, &above(HPos::Left), (pixel + gap, y))
    }
}

/// Text of a shown size; Plotters divides sizes by 1.24 on the way to SVG. The style sheet sets the family.
fn text(pixels: i32) -> TextStyle<'static> {
    let size = f64::from(pixels * ZOOM) * 1.24;
    ("sans-serif", size).into_font().color(&Ink::Label.color())
}
