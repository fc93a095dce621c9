//! The results as tables on standard output, and as docs/explanation/performance.md with two figures (SVG).

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    measure::Row,
    support::figures::{Figures, number},
};

/// Everything that was measured.
#[derive(Default)]
pub(crate) struct Report {
    tables: Vec<Table>,
    targets: Vec<Target>,
    skipped: Vec<String>,
}

/// Tools that did the same work.
pub(crate) struct Table {
    /// What they did.
    pub(crate) title: String,
    /// What a reader must know.
    pub(crate) about: String,
    /// The tools.
    pub(crate) rows: Vec<Row>,
    /// The rows to which others are put in relation.
    pub(crate) base: usize,
}

/// Something that was promised.
pub(crate) struct Target {
    /// What is compared with what.
    pub(crate) what: String,
    /// The most that the ratio, or the figure, may be; in words.
    pub(crate) at_most: &'static str,
    /// What was measured, in words.
    pub(crate) measured: String,
    /// Whether that is enough.
    pub(crate) met: bool,
    /// What bounds it, or how it is to be read.
    pub(crate) bound: String,
}

const MIB: f64 = (1 << 20) as f64;

impl Report {
    /// Adds a table, and prints it at once: a long run shows what it has.
    pub(crate) fn table(&mut self, table: Table) {
        println!("\n{}", text(&table));
        self.tables.push(table);
    }

    /// Adds a target, and prints it.
    pub(crate) fn target(&mut self, target: Target) {
        let word = if target.met { "met" } else { "NOT MET" };
        println!(
            "target: {} {}: {}, {word}. {}",
            target.what, target.at_most, target.measured, target.bound
        );
        self.targets.push(target);
    }

    /// Something could not be measured here.
    pub(crate) fn skip(&mut self, what: String) {
        super::support::skipped(&what);
        self.skipped.push(what);
    }

    /// Writes the page and its figures below `docs` (docs/explanation).
    pub(crate) fn write(&self, docs: &Path, runs: usize) -> io::Result<()> {
        let mut page = String::from("# Performance of installations\n\n");
        page.push_str("Written by `make bench-install ARGS=--write-docs`; do not edit. ");
        let _ = writeln!(
            page,
            "Measured on {}, on {}. {runs} runs each, in turn; minimum, median and maximum. Absolute times hold for this machine \
             only: the ratios are what counts.\n",
            machine(),
            jiff::Timestamp::now().strftime("%Y-%m-%d")
        );
        page.push_str(ABOUT);
        page.push_str("\n## Targets\n\n| What | Target | Measured | | What bounds it |\n|---|---|---|---|---|\n");
        for target in &self.targets {
            let word = if target.met { "met" } else { "**not met**" };
            let cells = [
                &target.what,
                target.at_most,
                &target.measured,
                word,
                &target.bound,
            ];
            page.push_str(&line(cells));
        }
        for table in &self.tables {
            let _ = write!(page, "\n## {}\n\n{}\n\n", table.title, table.about);
            page.push_str(&markdown(table));
            for (name, title, of) in FIGURES {
                let bars: Vec<_> = table
                    .rows
                    .iter()
                    .filter(|row| figures(row, of).most() > 0.0)
                    .collect();
                let compares = bars.iter().any(|row| !is_ours(row));
                if compares && bars.len() > 2 {
                    let file = format!("performance-{}-{name}.svg", slug(&table.title));
                    fs::write(docs.join(&file), svg(title, &bars, of))?;
                    let _ = writeln!(page, "\n![{title}]({file})");
                }
            }
        }
        if !self.skipped.is_empty() {
            page.push_str("\n## Not measured\n\n");
            for what in &self.skipped {
                let _ = writeln!(page, "- {what}");
            }
        }
        fs::write(docs.join("performance.md"), page)
    }
}

const ABOUT: &str = "The images are those of `tests/bench/pairs.sh`: two releases of one Debian 12 system of 1.5 GiB (about \
1.2 GiB in use: kernel, network, docker, python, node, ffmpeg, nginx, a product of 6 MB), the newer one with all security updates and \
3 % of the product changed. `v2r` was built anew, `v2i` made by `apt-get dist-upgrade` in a copy of the older one. Every tool downloads \
from the same server on loopback, counted there, and writes to the same loop device (direct I/O to a file on disk), which the kernel's \
counters watch. Before each run the device is filled with noise, or with what the table says. Processor time is user and system time of \
all processes of a tool. Where a tool writes a file instead of a device, its row says so.\n\n\
fwupdated is measured as it works in the field: the real daemon, from the method call at a hub (the emulator) to its request for the \
reboot; slot disabled, image verified, written, synced, read back from the medium, armed. *Without read back* counts from the start of the \
download to the moment at which everything is on the medium, which is where the other tools end.\n";

type Number = fn(&super::measure::Cost) -> f64;

const FIGURES: [(&str, &str, Number); 2] = [
    ("time", "Seconds, median", |cost| cost.wall),
    ("bytes", "MB downloaded, median", |cost| {
        cost.served.bytes as f64 / 1e6
    }),
];

fn figures(row: &Row, of: Number) -> Figures {
    row.figures(of)
}

fn slug(title: &str) -> String {
    let words = title.to_lowercase();
    let words = words.split(|letter: char| !letter.is_ascii_alphanumeric());
    words
        .filter(|word| !word.is_empty())
        .take(5)
        .collect::<Vec<_>>()
        .join("-")
}

/// The columns of a table: head and cell.
fn cells(table: &Table, row: &Row) -> Vec<(&'static str, String)> {
    let base = table.rows.get(table.base);
    let three = |figures: &Figures| {
        if figures.count() < 2 {
            return number(figures.median());
        }
        let (least, median, most) = (figures.least(), figures.median(), figures.most());
        format!("{} / {} / {}", number(least), number(median), number(most))
    };
    let ratio = |of: Number| {
        let base = base
            .map(|base| figures(base, of).median())
            .unwrap_or_default();
        let own = figures(row, of).median();
        if base > 0.0 && own > 0.0 {
            format!("{:.2}", own / base)
        } else {
            "-".to_owned()
        }
    };
    let mib = |of: Number, unit: f64| {
        let own = figures(row, of);
        if own.most() > 0.0 {
            number(own.median() / unit)
        } else {
            "-".to_owned()
        }
    };
    let seconds = |of: Number| {
        let own = figures(row, of);
        if own.most() > 0.0 {
            three(&own)
        } else {
            "-".to_owned()
        }
    };
    vec![
        ("tool", row.tool.clone()),
        ("wall s", seconds(|cost| cost.wall)),
        ("ratio", ratio(|cost| cost.wall)),
        ("CPU s", seconds(|cost| cost.processor)),
        ("ratio", ratio(|cost| cost.processor)),
        ("MB down", mib(|cost| cost.served.bytes as f64, 1e6)),
        ("requests", mib(|cost| cost.served.requests as f64, 1.0)),
        ("MB written", mib(|cost| cost.written as f64, 1e6)),
        ("peak MiB", mib(|cost| cost.memory.unwrap_or(0) as f64, MIB)),
        ("note", row.note.clone()),
    ]
}

fn markdown(table: &Table) -> String {
    let mut text = String::new();
    for (index, row) in table.rows.iter().enumerate() {
        let cells = cells(table, row);
        if index == 0 {
            text.push_str(&line(cells.iter().map(|(head, _)| *head)));
            let _ = writeln!(text, "|{}", "---|".repeat(cells.len()));
        }
        text.push_str(&line(cells.iter().map(|(_, value)| value.as_str())));
    }
    text
}

/// A line of a table. A bar that is meant as such must not begin a column.
fn line<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let cells = cells.into_iter().map(|cell| cell.replace('|', "\\|"));
    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

fn is_ours(row: &Row) -> bool {
    row.tool.starts_with("fwupdated")
}

fn text(table: &Table) -> String {
    let rows: Vec<Vec<_>> = table.rows.iter().map(|row| cells(table, row)).collect();
    let Some(first) = rows.first() else {
        return String::new();
    };
    let width = |column: usize| {
        let longest = rows
            .iter()
            .map(|row| row[column].1.len())
            .max()
            .unwrap_or(0);
        longest.max(first[column].0.len())
    };
    let widths: Vec<_> = (0..first.len()).map(width).collect();
    let line = |values: Vec<&str>| {
        let padded = values
            .iter()
            .zip(&widths)
            .map(|(value, width)| format!("{value:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut text = format!(
        "{}\n{}\n",
        table.title,
        line(first.iter().map(|(head, _)| *head).collect())
    );
    for row in &rows {
        text.push_str(&line(row.iter().map(|(_, value)| value.as_str()).collect()));
        text.push('\n');
    }
    text
}

/// Horizontal bars of medians, with the range of all runs as a line.
fn svg(title: &str, rows: &[&Row], of: Number) -> String {
    const LEFT: f64 = 250.0;
    const WIDE: f64 = 420.0;
    const HIGH: f64 = 26.0;
    let most = rows
        .iter()
        .map(|row| figures(row, of).most())
        .fold(0.0, f64::max);
    let height = 44.0 + HIGH * rows.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"760\" height=\"{height}\" fill=\"#fff\"/>\n<text x=\"8\" y=\"20\" font-weight=\"bold\">{title}</text>\n"
    );
    for (index, row) in rows.iter().enumerate() {
        let own = figures(row, of);
        let at = |value: f64| LEFT + value / most * WIDE;
        let top = 36.0 + HIGH * index as f64;
        let middle = top + HIGH / 2.0 - 3.0;
        let colour = if is_ours(row) { "#1f77b4" } else { "#b0b0b0" };
        let name = row.tool.replace('&', "&amp;").replace('<', "&lt;");
        let _ = write!(
            text,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>\n\
             <rect x=\"{LEFT}\" y=\"{top:.0}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\n\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.0}\" y2=\"{middle:.0}\" stroke=\"#333\"/>\n\
             <text x=\"{:.1}\" y=\"{:.0}\">{}</text>\n",
            LEFT - 8.0,
            middle + 4.0,
            own.median() / most * WIDE,
            HIGH - 6.0,
            at(own.least()),
            at(own.most()),
            at(own.most()) + 6.0,
            middle + 4.0,
            number(own.median()),
        );
    }
    text.push_str("</svg>\n");
    text
}

/// Processor, cores, kernel.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let release = Command::new("uname").arg("-rm").output();
    let release = release.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    let sha =
        of("flags").is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "sha_ni"));
    format!(
        "a machine with {cores} cores ({}{}), Linux {}",
        of("model name").unwrap_or_else(|| "unknown processor".to_owned()),
        if sha { ", with SHA instructions" } else { "" },
        release.unwrap_or_default()
    )
}

/// Where the page lies.
pub(crate) fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/explanation")
}
