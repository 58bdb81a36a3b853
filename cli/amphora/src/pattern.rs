//! Small regular expressions: `^ $ . * + ? [a-z] [^a-z] | ( )` and backslashes. Filters on names
//! need no more, and a library would double the binary's text of this kind.

/// Most steps one search may take: backtracking on a hostile pattern ends there.
const MAX_STEPS: usize = 1 << 20;

#[derive(Debug)]
enum Item {
    Start,
    End,
    Any,
    Char(char),
    Class(bool, Vec<(char, char)>),
    Group(Vec<Vec<Part>>),
}

#[derive(Debug)]
struct Part {
    item: Item,
    least: usize,
    most: usize,
}

/// Says whether the pattern is found anywhere in the text; `None` when it does not parse.
pub(crate) fn find(pattern: &str, text: &str) -> Option<bool> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut at = 0;
    let branches = alternatives(&chars, &mut at, 0)?;
    if at != chars.len() {
        return None;
    }
    let text: Vec<char> = text.chars().collect();
    let mut steps = 0;
    for start in 0..=text.len() {
        for branch in &branches {
            if run(branch, &text, start, &mut steps, &mut |_, _| true) {
                return Some(true);
            }
        }
    }
    Some(false)
}

fn alternatives(chars: &[char], at: &mut usize, depth: usize) -> Option<Vec<Vec<Part>>> {
    const MAX_DEPTH: usize = 20;
    if depth > MAX_DEPTH {
        return None;
    }
    let mut branches = vec![Vec::new()];
    while let Some(c) = chars.get(*at).copied() {
        if c == ')' {
            break;
        }
        *at += 1;
        let item = match c {
            '|' => {
                branches.push(Vec::new());
                continue;
            }
            '^' => Item::Start,
            '$' => Item::End,
            '.' => Item::Any,
            '*' | '+' | '?' => return None,
            '[' => class(chars, at)?,
            '(' => {
                if chars.get(*at) == Some(&'?') && chars.get(*at + 1) == Some(&':') {
                    *at += 2;
                }
                let inside = alternatives(chars, at, depth + 1)?;
                if chars.get(*at) != Some(&')') {
                    return None;
                }
                *at += 1;
                Item::Group(inside)
            }
            '\\' => {
                let c = chars.get(*at).copied()?;
                *at += 1;
                match c {
                    'd' => Item::Class(false, vec![('0', '9')]),
                    'w' => Item::Class(false, vec![('0', '9'), ('a', 'z'), ('A', 'Z'), ('_', '_')]),
                    's' => Item::Class(false, vec![(' ', ' '), ('\t', '\r')]),
                    c if c.is_ascii_alphanumeric() => return None,
                    c => Item::Char(c),
                }
            }
            c => Item::Char(c),
        };
        let (least, most) = match chars.get(*at) {
            Some('*') => (0, usize::MAX),
            Some('+') => (1, usize::MAX),
            Some('?') => (0, 1),
            _ => (1, 1),
        };
        if (least, most) != (1, 1) {
            *at += 1;
        }
        branches.last_mut()?.push(Part { item, least, most });
    }
    Some(branches)
}

fn class(chars: &[char], at: &mut usize) -> Option<Item> {
    let negated = chars.get(*at) == Some(&'^');
    if negated {
        *at += 1;
    }
    let mut ranges = Vec::new();
    loop {
        let mut c = chars.get(*at).copied()?;
        *at += 1;
        if c == ']' && !ranges.is_empty() {
            return Some(Item::Class(negated, ranges));
        }
        if c == '\\' {
            c = chars.get(*at).copied()?;
            *at += 1;
        }
        let range = chars.get(*at) == Some(&'-') && chars.get(*at + 1).is_some_and(|c| *c != ']');
        let mut end = c;
        if range {
            end = chars.get(*at + 1).copied()?;
            *at += 2;
        }
        if end < c {
            return None;
        }
        ranges.push((c, end));
    }
}

type Then<'a> = dyn FnMut(usize, &mut usize) -> bool + 'a;

fn run(parts: &[Part], text: &[char], at: usize, steps: &mut usize, then: &mut Then<'_>) -> bool {
    *steps += 1;
    if *steps > MAX_STEPS {
        return false;
    }
    match parts.split_first() {
        None => then(at, steps),
        Some((part, rest)) => repeat(part, rest, 0, text, at, steps, then),
    }
}

fn repeat(
    part: &Part,
    rest: &[Part],
    done: usize,
    text: &[char],
    at: usize,
    steps: &mut usize,
    then: &mut Then<'_>,
) -> bool {
    *steps += 1;
    if *steps > MAX_STEPS {
        return false;
    }
    if done < part.most {
        let more = match &part.item {
            Item::Group(branches) => branches.iter().any(|branch| {
                run(branch, text, at, steps, &mut |next, steps| {
                    // A round that took nothing would go on for ever.
                    (next > at || done < part.least)
                        && repeat(part, rest, done + 1, text, next, steps, then)
                })
            }),
            item => single(item, text, at).is_some_and(|next| {
                let idle = next == at && done >= part.least;
                !idle && repeat(part, rest, done + 1, text, next, steps, then)
            }),
        };
        if more {
            return true;
        }
    }
    done >= part.least && run(rest, text, at, steps, then)
}

fn single(item: &Item, text: &[char], at: usize) -> Option<usize> {
    let c = text.get(at);
    let fits = match item {
        Item::Start => return (at == 0).then_some(at),
        Item::End => return (at == text.len()).then_some(at),
        Item::Any => c.is_some(),
        Item::Char(want) => c == Some(want),
        Item::Class(negated, ranges) => {
            c.is_some_and(|c| ranges.iter().any(|(a, b)| a <= c && c <= b) != *negated)
        }
        Item::Group(_) => false,
    };
    fits.then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn patterns() {
        for (pattern, text, want) in [
            ("web", "my-web-1", true),
            ("^web$", "web", true),
            ("^web$", "web1", false),
            ("^/web", "/web", true),
            ("w.b", "wxb", true),
            ("^a*b+c?$", "aabb", true),
            ("^(a|bc)+$", "abcbc", true),
            ("^(a|bc)+$", "abb", false),
            ("[0-9]+$", "x12", true),
            ("^[^a-c]+$", "xay", false),
            (r"a\.b", "a.b", true),
            (r"^\d+$", "123", true),
            ("", "anything", true),
            ("^(a*)*$", "aaaaaaaaaaaaaaaaaaaaaaaab", false),
        ] {
            assert_eq!(find(pattern, text), Some(want), "{pattern} in {text}");
        }
        for bad in ["(", ")", "*a", "[", "a\\"] {
            assert_eq!(find(bad, "a"), None, "{bad}");
        }
    }
}
