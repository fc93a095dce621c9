//! Figures over several runs, and how they are printed.

use std::time::Duration;

/// Measured values, in order of size.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    pub(crate) fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn millis(times: &[Duration]) -> Self {
        Self::new(times.iter().map(|time| time.as_secs_f64() * 1000.0))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that `share` (0 to 1) of all values do not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let at = (share * last as f64).ceil() as usize;
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn least(&self) -> f64 {
        self.quantile(0.0)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn most(&self) -> f64 {
        self.quantile(1.0)
    }

    /// One line of a table of minimum, median and maximum.
    pub(crate) fn row(&self, what: &str, unit: &str) -> String {
        format!(
            "{what:<52} {:>10} {:>10} {:>10}  {unit}",
            number(self.least()),
            number(self.median()),
            number(self.most())
        )
    }

    /// One line of latencies.
    pub(crate) fn latencies(&self, what: &str) -> String {
        format!(
            "{what:<40} p50 {:>8} ms   p99 {:>8} ms   max {:>8} ms   ({} calls)",
            number(self.median()),
            number(self.quantile(0.99)),
            number(self.most()),
            self.count()
        )
    }
}

/// The head of a table of [`Figures::row`]s.
pub(crate) fn heading(title: &str) -> String {
    format!(
        "\n{title:<52} {:>10} {:>10} {:>10}",
        "minimum", "median", "maximum"
    )
}

/// Three digits that count, or all before the point.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
