//! Paths as `cp` reads them. Pure: nothing is looked up.

/// Resolves `.`, `..` and doubled slashes by the text alone. An empty path is `.`.
#[must_use]
pub fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if absolute => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Says whether a path ends in `/` or names a directory by its `.`: only a directory will do.
#[must_use]
pub fn asserts_directory(path: &str) -> bool {
    path.ends_with('/') || specifies_current(path)
}

/// Says whether the last part of a path is `.`.
#[must_use]
pub fn specifies_current(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// Gives a cleaned path the `/.` or `/` at its end that the original has.
#[must_use]
pub fn keep_end(cleaned: &str, original: &str) -> String {
    let mut path = cleaned.to_owned();
    if !specifies_current(&path) && specifies_current(original) {
        if !path.ends_with('/') {
            path.push('/');
        }
        path.push('.');
    }
    if !path.ends_with('/') && original.ends_with('/') {
        path.push('/');
    }
    path
}

/// Returns the last part of a path: `/` of the root, `.` of an empty one.
#[must_use]
pub fn base(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed {
        "" if path.is_empty() => ".",
        "" => "/",
        _ => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

/// Splits a path into directory and last part after cleaning it; a `.` at the end stays one.
#[must_use]
pub fn split(path: &str) -> (String, String) {
    let mut cleaned = clean(path);
    if specifies_current(path) {
        cleaned.push_str("/.");
    }
    let directory = match cleaned.rfind('/') {
        Some(0) => "/".to_owned(),
        Some(at) => clean(cleaned.get(..at).unwrap_or("/")),
        None => ".".to_owned(),
    };
    (directory, base(&cleaned).to_owned())
}

/// Joins a link's target to the directory it is in, unless the target is absolute.
#[must_use]
pub fn join(directory: &str, path: &str) -> String {
    if path.starts_with('/') {
        clean(path)
    } else {
        clean(&format!("{directory}/{path}"))
    }
}

/// A path inside a container: absolute, cleaned, with the end of the original.
#[must_use]
pub fn in_container(path: &str) -> String {
    keep_end(&clean(&format!("/{path}")), path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, want) in [
            ("/a//b/./c/..", "/a/b"),
            ("/../..", "/"),
            ("", "."),
            ("a/..", "."),
            ("../a", "../a"),
            ("a/../..", ".."),
            ("/", "/"),
        ] {
            assert_eq!(clean(path), want, "{path}");
        }
        assert_eq!(in_container("etc/"), "/etc/");
        assert_eq!(in_container("/etc/."), "/etc/.");
        assert_eq!(in_container("../../etc"), "/etc");
        assert_eq!(in_container("."), "/.");
    }

    #[test]
    fn ends_say_what_is_meant() {
        assert_eq!(split("/a/b/."), ("/a/b".to_owned(), ".".to_owned()));
        assert_eq!(split("/a/b/"), ("/a".to_owned(), "b".to_owned()));
        assert_eq!(split("/a"), ("/".to_owned(), "a".to_owned()));
        assert_eq!(split("a"), (".".to_owned(), "a".to_owned()));
        assert_eq!((base("/"), base("/x/"), base("")), ("/", "x", "."));
        assert!(asserts_directory("x/") && asserts_directory("x/.") && !asserts_directory("x"));
    }
}
