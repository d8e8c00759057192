//! Queries of every class, rolled. Where a seed leads depends on their order.

use crossfade_mapping::Derived;

use super::dice::Dice;
use super::maintain::into;

mod groups;
mod joins;
mod others;
mod sets;
mod several;
mod sublinks;

/// A rolled query.
#[derive(Clone, Debug)]
pub struct Rolled {
    pub class: &'static str,
    /// What gives the table's rows in full.
    pub sql: String,
    /// What the plan says.
    pub derived: Derived,
    /// Whether the compiler has to refuse it.
    pub is_refused: bool,
}

/// How a class is to be taken.
#[derive(Clone, Copy, PartialEq)]
enum As {
    /// Rows without a key, by their unit.
    Rows,
    /// The unit is the key.
    Keyed,
    /// To be refused.
    Refused,
}
use As::{Keyed, Refused};

type Roll = fn(&mut Dice) -> (String, Vec<&'static str>);

type Class = (&'static str, As, Roll);

fn all() -> impl Iterator<Item = &'static Class> {
    [joins::CLASSES, sublinks::CLASSES, groups::CLASSES, sets::CLASSES, others::CLASSES].into_iter().flatten()
}

/// A query of one of these classes, or of any if none is named; numbers that follow each other go over all of them.
pub fn roll(dice: &mut Dice, number: u64, only: &[&str]) -> Rolled {
    let is_chosen = |name: &str| only.is_empty() || only.contains(&name);
    let chosen: Vec<&Class> = all().filter(|(name, ..)| is_chosen(name)).collect();
    let several: Vec<_> = several::CLASSES.iter().filter(|(name, _)| is_chosen(name)).collect();
    let number = (number % (chosen.len() + several.len()) as u64) as usize;
    let Some((class, how, roll)) = chosen.get(number).copied().copied() else {
        let (class, roll) = *several[number - chosen.len()];
        let (derived, sql) = roll(dice);
        return Rolled { class, sql, derived, is_refused: false };
    };
    let (sql, unit) = roll(dice);
    let mut derived = Derived::new(into(), &[], &sql);
    let unit = unit.into_iter().map(str::to_owned).collect();
    // Whether the unit tells rows apart and is never null.
    if how == Keyed && dice.chance(70) {
        derived.key = unit;
    } else {
        derived.recompute_by = unit;
    }
    Rolled { class, sql, derived, is_refused: how == Refused }
}

pub fn names() -> Vec<&'static str> {
    all().map(|(name, ..)| *name).chain(several::CLASSES.iter().map(|(name, _)| *name)).collect()
}

fn t(d: &mut Dice) -> &'static str {
    d.one_of(&["a", "b", "c"])
}

fn c(d: &mut Dice) -> &'static str {
    d.one_of(&["k", "x", "g"])
}

fn i(d: &mut Dice) -> &'static str {
    d.one_of(&["id", "k", "x", "g"])
}

fn maybe(d: &mut Dice, text: &str) -> String {
    if d.chance(50) { text.to_owned() } else { String::new() }
}

fn one(d: &mut Dice, all: &[&'static str]) -> &'static str {
    d.one_of(all)
}

fn units(d: &mut Dice, all: &[&[&'static str]]) -> Vec<&'static str> {
    d.one_of(all).to_vec()
}

fn cmp(d: &mut Dice, of: &str) -> String {
    let (column, n) = (c(d), d.below(4));
    match d.below(6) {
        0 => format!("{of}.{column} > {n}"),
        1 => format!("{of}.{column} = {n}"),
        2 => format!("{of}.{column} IS NULL"),
        3 => format!("{of}.{column} IS NOT NULL"),
        4 => format!("coalesce({of}.{column}, 0) < {n}"),
        _ => format!("NOT ({of}.{column} = {n})"),
    }
}

fn eq(d: &mut Dice, one: &str, other: &str) -> String {
    let (x, y) = (i(d), i(d));
    match d.below(6) {
        0..=2 => format!("{one}.{x} = {other}.{y}"),
        3 => format!("{one}.{} IS NOT DISTINCT FROM {other}.{}", c(d), c(d)),
        4 => format!("{one}.{x} = {other}.{y} AND {}", cmp(d, other)),
        _ => format!("{one}.{x} = {other}.{y} AND {}", cmp(d, one)),
    }
}

fn agg(d: &mut Dice, of: &str) -> String {
    let column = c(d);
    match d.below(6) {
        0 => "count(*)".to_owned(),
        1 => format!("sum({of}.{column})"),
        2 => format!("min({of}.{column})"),
        3 => format!("max({of}.{column})"),
        4 => format!("count(DISTINCT {of}.{column})"),
        _ => format!("count({of}.{column})"),
    }
}

/// WHERE, or nothing.
fn filter(d: &mut Dice, of: &[&'static str]) -> String {
    if d.chance(50) {
        return String::new();
    }
    let mut parts = Vec::new();
    for _ in 0..=d.below(2) {
        let of = d.one_of(of);
        parts.push(cmp(d, of));
    }
    format!(" WHERE {}", parts.join(one(d, &[" AND ", " OR "])))
}

fn and(d: &mut Dice, of: &str) -> String {
    if d.chance(50) { format!(" AND {}", cmp(d, of)) } else { String::new() }
}
