//! Generated names, `adjective_surname` as Docker's.

const ADJECTIVES: [&str; 64] = [
    "able", "agile", "amber", "ample", "bold", "brave", "breezy", "bright", "brisk", "busy",
    "calm", "candid", "clever", "coral", "cosmic", "crisp", "dapper", "daring", "deft", "eager",
    "early", "earnest", "epic", "fair", "fleet", "fond", "frosty", "gentle", "glad", "golden",
    "grand", "happy", "hardy", "honest", "humble", "ideal", "jolly", "keen", "kind", "lively",
    "lucid", "lucky", "mellow", "merry", "mighty", "neat", "nimble", "noble", "patient", "plucky",
    "proud", "quick", "quiet", "rapid", "ready", "serene", "sharp", "silver", "steady", "sunny",
    "tidy", "vivid", "witty", "zesty",
];

const SURNAMES: [&str; 64] = [
    "ampere",
    "archimedes",
    "babbage",
    "bardeen",
    "becquerel",
    "bell",
    "bohr",
    "boole",
    "born",
    "bose",
    "boyle",
    "cantor",
    "carson",
    "cerf",
    "chandra",
    "curie",
    "darwin",
    "dijkstra",
    "dirac",
    "edison",
    "einstein",
    "euclid",
    "euler",
    "faraday",
    "fermat",
    "fermi",
    "feynman",
    "franklin",
    "galileo",
    "gauss",
    "goodall",
    "haibt",
    "hamilton",
    "hawking",
    "heisenberg",
    "hertz",
    "hopper",
    "hypatia",
    "johnson",
    "joliot",
    "kalam",
    "keller",
    "kepler",
    "khorana",
    "lamarr",
    "lamport",
    "leakey",
    "liskov",
    "lovelace",
    "maxwell",
    "mayer",
    "mendel",
    "meitner",
    "mirzakhani",
    "newton",
    "noether",
    "pascal",
    "pasteur",
    "perlman",
    "raman",
    "ritchie",
    "shannon",
    "turing",
    "volta",
];

/// Makes a name of random bytes; `attempt` above zero adds a digit, as Docker does on a clash.
pub(crate) fn generate(random: [u8; 2], attempt: u32) -> String {
    let pick = |list: &'static [&'static str; 64], byte: u8| list[usize::from(byte % 64)];
    let [a, b] = random;
    let base = format!("{}_{}", pick(&ADJECTIVES, a), pick(&SURNAMES, b));
    if attempt == 0 {
        base
    } else {
        format!("{base}{}", attempt % 10)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_legal() {
        for byte in 0..=255u8 {
            let name = super::generate([byte, byte.wrapping_mul(7)], u32::from(byte));
            assert!(amphora_spec::id::check_name(&name).is_ok(), "{name}");
        }
    }
}
