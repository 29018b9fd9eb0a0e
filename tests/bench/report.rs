//! The figures, their table, and their goals.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

/// The goal of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// The figure is for comparison only.
    None,
}

/// The number of clients of figures that do not depend on it.
const ONCE: usize = 0;

/// One figure, with a value for each number of clients.
struct Row {
    name: &'static str,
    unit: &'static str,
    goal: Goal,
    values: Vec<(usize, f64)>,
}

/// All figures in the order of the table.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a figure that does not depend on the number of clients.
    pub fn add_once(&mut self, name: &'static str, unit: &'static str, goal: Goal, value: f64) {
        self.add(name, unit, goal, ONCE, value);
    }

    /// Adds a value of a figure. The goal applies to the value for the most clients.
    pub fn add(&mut self, name: &'static str, unit: &'static str, goal: Goal, clients: usize, value: f64) {
        eprintln!("  {name}: {} {unit}", short(value));
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.values.push((clients, value)),
            None => self.rows.push(Row { name, unit, goal, values: vec![(clients, value)] }),
        }
    }

    /// Returns the names of all figures, each with the number of its values.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.rows.iter().map(|row| (row.name, row.values.len()))
    }

    /// Returns a Markdown table with a column for each number of clients, the growth from the
    /// fewest to the most, and the goal.
    pub fn table(&self) -> String {
        let mut columns: Vec<usize> =
            self.rows.iter().flat_map(|row| &row.values).map(|(clients, _)| *clients).collect();
        columns.sort_unstable();
        columns.dedup();
        let mut out = "| figure | unit |".to_owned();
        for clients in &columns {
            let _ = if *clients == ONCE { write!(out, " |") } else { write!(out, " {clients} |") };
        }
        out += " grows | goal | |\n|---|---|";
        out += &"---:|".repeat(columns.len());
        out += "---:|---:|---|\n";
        for row in &self.rows {
            let _ = write!(out, "| {} | {} |", row.name, row.unit);
            for clients in &columns {
                let value = row.values.iter().find(|(of, _)| of == clients);
                let _ = write!(out, " {} |", value.map_or_else(String::new, |(_, value)| short(*value)));
            }
            let _ = writeln!(out, " {} | {} | {} |", row.growth(), row.goal_text(), row.verdict());
        }
        out
    }

    /// Writes all figures to a file as JSON.
    pub fn write_json(&self, path: &Path) -> Result<(), String> {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        std::fs::write(path, format!("{:#}\n", json!({ "figures": rows })))
            .map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Row {
    fn last(&self) -> f64 {
        self.values.iter().max_by_key(|(clients, _)| *clients).expect("a row has at least one value").1
    }

    fn met(&self) -> Option<bool> {
        match self.goal {
            Goal::AtMost(most) => Some(self.last() <= most),
            Goal::AtLeast(least) => Some(self.last() >= least),
            Goal::None => None,
        }
    }

    fn verdict(&self) -> &'static str {
        self.met().map_or("", |met| if met { "ok" } else { "missed" })
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Goal::AtMost(most) => format!("≤ {}", short(most)),
            Goal::AtLeast(least) => format!("≥ {}", short(least)),
            Goal::None => String::new(),
        }
    }

    fn growth(&self) -> String {
        let first = self.values.iter().min_by_key(|(clients, _)| *clients).expect("a row has at least one value").1;
        if self.values.len() < 2 || first == 0.0 { String::new() } else { format!("× {:.2}", self.last() / first) }
    }

    fn json(&self) -> Value {
        let values: Vec<Value> =
            self.values.iter().map(|(clients, value)| json!({"clients": clients, "value": value})).collect();
        json!({"name": self.name, "unit": self.unit, "goal": self.goal_text(), "met": self.met(), "values": values})
    }
}

/// Formats a number with three significant digits, or with all digits before the point.
fn short(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    // Group thousands with commas.
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) && digit.is_ascii_digit() {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// Returns the median.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// Returns the quantile for a share between 0 and 1.
pub fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1).expect("there is at least one value");
    values[(last as f64 * share).round() as usize]
}
