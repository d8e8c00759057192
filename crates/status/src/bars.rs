use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::model::{Status, TableProgress, TableState};
use crate::text::{head, word};

/// More than this do not fit on a screen; what is under way comes first.
const SHOWN: usize = 20;

/// Progress bars with the time that each table is going to take, above them everything else.
pub struct Bars {
    screen: MultiProgress,
    head: ProgressBar,
    tables: BTreeMap<(String, String), ProgressBar>,
}

impl Default for Bars {
    fn default() -> Self {
        let screen = MultiProgress::new();
        let head = screen.add(ProgressBar::new_spinner());
        head.set_style(style("{msg}"));
        Bars { screen, head, tables: BTreeMap::new() }
    }
}

/// The templates are ours, so they can be read; if not, there are no bars and the status goes on.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Bars {
    /// Shows a newer status.
    pub fn show(&mut self, status: &Status) {
        let mut text = String::new();
        let _ = head(&mut text, status);
        self.head.set_message(text);
        for table in &status.tables {
            let key = (table.source.clone(), table.table.clone());
            let busy = matches!(table.state, TableState::Copying | TableState::Indexing);
            if !busy {
                if let Some(bar) = self.tables.remove(&key) {
                    bar.finish_and_clear();
                    self.screen.remove(&bar);
                }
                continue;
            }
            if !self.tables.contains_key(&key) && self.tables.len() >= SHOWN {
                continue;
            }
            let screen = &self.screen;
            update(self.tables.entry(key).or_insert_with(|| screen.add(bar(table.rows_copied))), table);
        }
    }
}

fn bar(done: u64) -> ProgressBar {
    // What was there before anybody watched says nothing about the speed.
    let bar = ProgressBar::new(0).with_position(done);
    bar.reset_eta();
    bar.set_style(style("{prefix:<40} {bar:24} {human_pos:>12} of {human_len:>12} rows  {msg:<8} ETA {eta}"));
    bar
}

fn update(bar: &ProgressBar, table: &TableProgress) {
    bar.set_prefix(table.table.clone());
    // An estimate that was too low would show more than all.
    bar.set_length(table.rows_estimated.max(table.rows_copied));
    bar.set_position(table.rows_copied);
    bar.set_message(word(table.state));
}
