//! Lines over logarithmic axes, as inline SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Colours that the page's style knows.
const COLOURS: usize = 6;

/// One line.
pub struct Line {
    /// For the legend.
    pub name: String,
    /// Drawn dashed: not ours.
    pub is_limit: bool,
    /// Logarithms to base 10 of what the axes show.
    pub points: Vec<(f64, f64)>,
}

/// What stands along an axis: its name, and places with their labels.
pub struct Axis<'a> {
    /// Shown beside the axis.
    pub name: &'a str,
    /// Where a label stands, as a logarithm to base 10.
    pub ticks: Vec<(f64, String)>,
}

/// A figure: its drawing and its legend.
pub fn figure(title: &str, across: &Axis<'_>, up: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) =
            values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        (low, high.max(low + 1e-9))
    };
    if points().next().is_none() {
        return String::new();
    }
    let (x_low, x_high) = range(&mut points().map(|point| point.0));
    let (low, high) = range(&mut points().map(|point| point.1));
    let (y_low, y_high) = ((low * 2.0).floor() / 2.0, (high * 2.0).ceil() / 2.0);
    let x = |value: f64| LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM);

    let mut svg = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = write!(
        svg,
        "<figure><figcaption>{}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escaped(title),
        escaped(title)
    );
    for (value, label) in times(y_low, y_high) {
        let at = y(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{:.1}\" \
             y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        );
    }
    for (value, label) in across.ticks.iter().filter(|tick| (x_low..=x_high).contains(&tick.0)) {
        let (at, bottom) = (x(*value), HEIGHT - BOTTOM);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/><text x=\"{at:.1}\" \
             y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 17.0,
            escaped(label)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><text class=\"axis\" x=\"14\" \
         y=\"{TOP}\" text-anchor=\"end\" transform=\"rotate(-90 14 {TOP})\">{}</text>",
        WIDTH - RIGHT,
        HEIGHT - 8.0,
        escaped(across.name),
        escaped(up)
    );
    for (index, line) in lines.iter().enumerate() {
        let class = class(index, line);
        let path: Vec<String> =
            line.points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        let _ = write!(
            svg,
            "<polyline class=\"{class}\" points=\"{}\"><title>{}</title></polyline>",
            path.join(" "),
            escaped(&line.name)
        );
        if line.points.len() < 16 {
            for point in &line.points {
                let _ = write!(
                    svg,
                    "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{}: {}</title></circle>",
                    x(point.0),
                    y(point.1),
                    escaped(&line.name),
                    time(10_f64.powf(point.1))
                );
            }
        }
    }
    svg.push_str("</svg>\n<ul class=\"legend\">");
    for (index, line) in lines.iter().enumerate() {
        let class = class(index, line);
        let _ = write!(
            svg,
            "<li><svg viewBox=\"0 0 28 8\"><polyline class=\"{class}\" points=\"0,4 28,4\"/></svg>{}</li>",
            escaped(&line.name)
        );
    }
    svg.push_str("</ul></figure>\n");
    svg
}

fn class(index: usize, line: &Line) -> String {
    format!("c{}{}", index % COLOURS, if line.is_limit { " limit" } else { "" })
}

/// 1, 2 and 5 of each power of ten, or powers alone where there are many.
fn times(low: f64, high: f64) -> Vec<(f64, String)> {
    let steps: &[f64] = if high - low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = low.floor() as i32..=high.ceil() as i32;
    let ticks = powers.flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
    ticks
        .filter(|ns| (low - 1e-6..=high + 1e-6).contains(&ns.log10()))
        .map(|ns| (ns.log10(), time(ns)))
        .collect()
}

/// In a unit that suits.
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = if value < 9.95 { 1 } else { 0 };
    format!("{} {unit}", format!("{value:.digits$}").trim_end_matches(".0"))
}

/// Text as it stands in a page.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let shown = [3.2, 140.0, 1000.0, 42_783.0, 2_000_000.0, 1.5e9].map(time);
        assert_eq!(shown, ["3.2 ns", "140 ns", "1 µs", "43 µs", "2 ms", "1.5 s"]);
        assert_eq!(time(0.0), "0 ns");
    }

    #[test]
    fn a_figure_stays_inside_itself_and_takes_any_name() {
        let line = Line { name: "<a & b>".into(), is_limit: true, points: vec![(0.0, 2.0), (3.0, 7.0)] };
        let axis = Axis { name: "x", ticks: vec![(1.0, "one".into()), (9.0, "far away".into())] };
        let drawn = figure("a title", &axis, "time", &[line]);
        assert!(drawn.contains("&lt;a &amp; b&gt;") && !drawn.contains("<a &"), "{drawn}");
        assert!(drawn.contains(">one<") && !drawn.contains("far away"), "{drawn}");
        assert!(drawn.contains("points=\"76.0,316.0 704.0,14.0\""), "{drawn}");
        assert_eq!(figure("nothing", &axis, "time", &[]), "");
    }
}
