//! Rows under column names, as text for a person or as JSON for a program.

use serde_json::Value;

/// A cell: what JSON has, and what a person sees where that is something else.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    value: Value,
    text: Option<String>,
}

impl Cell {
    /// A cell that reads differently for a person.
    #[must_use]
    pub fn shown(value: Value, text: String) -> Self {
        Self {
            value,
            text: Some(text),
        }
    }

    fn text(&self) -> String {
        self.text.clone().unwrap_or_else(|| plain(&self.value))
    }
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        Self { value, text: None }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<none>".to_owned(),
        Value::String(text) if text.is_empty() => "<none>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(parts) if parts.is_empty() => "<none>".to_owned(),
        Value::Array(parts) => parts.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Rows under column names.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: &[&'static str]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: one cell for each column.
    pub fn push(&mut self, row: Vec<Cell>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a cell for each column");
        self.rows.push(row);
    }

    /// The table as JSON objects.
    #[must_use]
    pub fn json(&self) -> Value {
        let object = |row: &Vec<Cell>| {
            let names = self.columns.iter().map(|column| (*column).to_owned());
            Value::Object(names.zip(row.iter().map(|cell| cell.value.clone())).collect())
        };
        self.rows.iter().map(object).collect()
    }

    /// The table as aligned text with a heading.
    #[must_use]
    pub fn text(&self) -> String {
        let heading = self
            .columns
            .iter()
            .map(|column| column.replace('_', " ").to_uppercase())
            .collect::<Vec<String>>();
        let rows = self
            .rows
            .iter()
            .map(|row| row.iter().map(Cell::text).collect::<Vec<String>>());
        let lines: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
        let mut widths = vec![0; self.columns.len()];
        for line in &lines {
            for (width, word) in widths.iter_mut().zip(line) {
                *width = (*width).max(word.chars().count());
            }
        }
        let mut text = String::new();
        for line in &lines {
            let words: Vec<String> = line
                .iter()
                .zip(&widths)
                .map(|(word, width)| format!("{word:<width$}"))
                .collect();
            text.push_str(words.join("   ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A row of JSON values.
macro_rules! row {
    ($($cell:expr),+ $(,)?) => {
        vec![$($crate::inspect::table::Cell::from(serde_json::json!($cell))),+]
    };
}
pub(crate) use row;
