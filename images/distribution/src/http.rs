//! Requests to a registry: authentication, redirects, patience.

use std::io::Read;
use std::thread;
use std::time::Duration;

use amphora_spec::Reference;
use amphora_spec::reference::DEFAULT_DOMAIN;
use serde::Deserialize;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::auth::{self, Challenge, Known};
use crate::error::Result;
use crate::{ClientConfig, DistributionError, RegistryProblem, TransportError, url};

/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 5;
/// Bytes read of an answer that is no document or blob.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Bytes read of a token service's answer.
const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// How the standard library begins the message of a failed look-up; it has no kind of its own.
const LOOKUP_FAILED: &str = "failed to lookup address information";
/// Characters of foreign text that get into our error messages.
const MAX_QUOTED_CHARS: usize = 300;

/// Sends requests for all repositories.
#[derive(Debug)]
pub(crate) struct Http {
    /// Follows the proxy settings of the environment.
    agent: Agent,
    /// Goes straight, for loopback hosts.
    direct: Agent,
    pub(crate) config: ClientConfig,
    known: Known,
}

/// A repository of a registry.
#[derive(Debug)]
pub(crate) struct Repo {
    domain: String,
    path: String,
    /// As a user writes it.
    pub(crate) familiar: String,
    pub(crate) base: String,
    origin: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
}

impl Method {
    const fn name(self) -> &'static str {
        match self {
            Self::Get => "Get",
            Self::Head => "Head",
        }
    }
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a str,
    pub(crate) accept: &'a str,
    /// First byte wanted, when not 0.
    pub(crate) from: u64,
}

/// An answer, and whether the registry itself gave it (and not a host it redirected to).
struct Answer {
    response: Response<Body>,
    own: bool,
}

impl Repo {
    pub(crate) fn new(config: &ClientConfig, reference: &Reference) -> Self {
        Self::at(url::base(config, reference.domain()), reference)
    }

    /// The mirrors of a repository, those that are asked first before the others.
    pub(crate) fn mirrors(config: &ClientConfig, reference: &Reference) -> Vec<Self> {
        if reference.domain() != DEFAULT_DOMAIN {
            return Vec::new();
        }
        let mirrors = config.mirrors.iter().cloned();
        mirrors
            .map(|base| Self {
                // What is secret is the registry's own, and no mirror's.
                domain: String::new(),
                ..Self::at(base, reference)
            })
            .collect()
    }

    fn at(base: String, reference: &Reference) -> Self {
        Self {
            domain: reference.domain().to_owned(),
            path: reference.path().to_owned(),
            familiar: reference.familiar_repository(),
            origin: url::origin(&base).unwrap_or_default(),
            base,
        }
    }

    pub(crate) fn url(&self, kind: &str, name: &str) -> String {
        format!("{}/v2/{}/{kind}/{name}", self.base, self.path)
    }

    fn scope(&self) -> String {
        format!("repository:{}:pull", self.path)
    }

    pub(crate) fn denied(&self, problem: RegistryProblem) -> DistributionError {
        DistributionError::AccessDenied {
            repository: self.familiar.clone(),
            problem,
        }
    }
}

impl Http {
    pub(crate) fn new(config: ClientConfig) -> Result<Self> {
        let roots = config.roots_pem.as_deref().map(roots).transpose()?;
        let agent = |proxied: bool| {
            let tls = TlsConfig::builder();
            let tls = match &roots {
                Some(roots) => tls.root_certs(roots.clone()),
                None => tls,
            };
            let mut builder = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .user_agent(config.user_agent.as_str())
                .accept_encoding("identity")
                .timeout_connect(Some(config.connect_timeout))
                .timeout_resolve(Some(config.connect_timeout))
                .timeout_per_read(Some(config.silence_timeout))
                .timeout_per_write(Some(config.silence_timeout))
                .tls_config(tls.build());
            if !proxied {
                builder = builder.proxy(None);
            }
            builder.build().new_agent()
        };
        Ok(Self {
            agent: agent(true),
            direct: agent(false),
            known: Known::default(),
            config,
        })
    }

    /// Says whether there are credentials for a repository's registry.
    pub(crate) fn knows_credentials(&self, repo: &Repo) -> bool {
        self.config.credentials.contains_key(&repo.domain)
    }

    /// Sends a request with the authentication the registry asks for; any status is an answer.
    pub(crate) fn send(&self, repo: &Repo, ask: Ask<'_>) -> Result<Response<Body>> {
        let scope = repo.scope();
        let mut header = self.known.get(&repo.origin, &scope);
        let mut renewed = false;
        loop {
            let answer = self.follow(ask, header.as_deref(), &repo.origin)?;
            if answer.response.status() != StatusCode::UNAUTHORIZED || !answer.own || renewed {
                return Ok(answer.response);
            }
            renewed = true;
            let newer = self
                .known
                .get(&repo.origin, &scope)
                .filter(|h| Some(h) != header.as_ref());
            header = match newer {
                Some(newer) => Some(newer),
                None => Some(self.authenticate(repo, &scope, ask.url, answer.response)?),
            };
        }
    }

    /// Sends a request as [`Http::send`] does, again after a pause when the registry is
    /// overloaded or the connection breaks.
    pub(crate) fn send_patiently(&self, repo: &Repo, ask: Ask<'_>) -> Result<Response<Body>> {
        let policy = &self.config.retry;
        for failures in 1.. {
            let last = failures >= policy.attempts;
            let pause = match self.send(repo, ask) {
                Ok(response) if !last && is_overload(response.status()) => {
                    policy.pause(failures, retry_after(response.headers()))
                }
                Err(error) if !last && is_transient(&error) => policy.pause(failures, None),
                settled => return settled,
            };
            thread::sleep(pause);
        }
        self.send(repo, ask)
    }

    /// Answers a challenge; returns the `Authorization` header to use from now on.
    fn authenticate(
        &self,
        repo: &Repo,
        scope: &str,
        asked: &str,
        response: Response<Body>,
    ) -> Result<String> {
        let values = response.headers().get_all(header::WWW_AUTHENTICATE);
        let texts: Vec<String> = values
            .iter()
            .filter_map(|v| v.to_str().ok())
            .map(str::to_owned)
            .collect();
        let picked = auth::pick(texts.iter().map(String::as_str));
        let said = problem(response);
        let credentials = self.config.credentials.get(&repo.domain);
        let header = match (picked, credentials) {
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope: asked,
                }),
                _,
            ) => {
                let asked = asked.filter(|s| s.starts_with("repository:"));
                let wanted = asked.as_deref().unwrap_or(scope);
                let token = self.token(repo, &realm, service.as_deref(), wanted)?;
                format!("Bearer {token}")
            }
            (Some(Challenge::Basic), Some(credentials)) => auth::basic(credentials),
            (Some(Challenge::Basic), None) => return Err(repo.denied(denial(said, false))),
            (None, _) => {
                let challenge = quote(&texts.join(", "));
                return Err(DistributionError::Challenge {
                    url: asked.to_owned(),
                    challenge,
                });
            }
        };
        self.known.put(&repo.origin, scope, &header);
        Ok(header)
    }

    fn token(
        &self,
        repo: &Repo,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<String> {
        let realm_origin = url::origin(realm);
        let downgrade = repo.origin.starts_with("https:")
            && realm_origin
                .as_deref()
                .is_none_or(|o| o.starts_with("http:"));
        let (Some(origin), false) = (realm_origin, downgrade) else {
            let challenge = quote(&format!("Bearer realm=\"{realm}\""));
            return Err(DistributionError::Challenge {
                url: repo.base.clone(),
                challenge,
            });
        };
        let credentials = self.config.credentials.get(&repo.domain);
        let account = credentials.map(|c| c.username.as_str());
        let target = auth::token_url(realm, service, scope, account);
        let ask = Ask {
            method: Method::Get,
            url: &target,
            accept: "application/json",
            from: 0,
        };
        let header = credentials.map(auth::basic);
        let response = self.follow(ask, header.as_deref(), &origin)?.response;
        let status = response.status();
        if matches!(status.as_u16(), 401 | 403) {
            return Err(repo.denied(denial(problem(response), credentials.is_some())));
        }
        if !status.is_success() {
            return Err(unexpected(ask, response));
        }
        let body = read_at_most(response, MAX_TOKEN_BYTES).map_err(|e| broken(ask, &e))?;
        auth::token(&body).map_err(|source| DistributionError::Token {
            url: target.clone(),
            source,
        })
    }

    /// Sends one request and follows redirects. The `Authorization` header goes to `origin` only.
    fn follow(&self, ask: Ask<'_>, authorization: Option<&str>, origin: &str) -> Result<Answer> {
        let mut at = ask.url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let own = url::origin(&at).as_deref() == Some(origin);
            let response = self.once(ask, &at, authorization.filter(|_| own))?;
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => header_text(response.headers(), "location"),
                _ => None,
            };
            let Some(location) = location else {
                return Ok(Answer { response, own });
            };
            let next = url::join(&at, location);
            let downgrade = |next: &str| at.starts_with("https:") && next.starts_with("http:");
            match next.filter(|next| !downgrade(next)) {
                Some(next) => {
                    drop(problem(response));
                    at = next;
                }
                None => {
                    let location = quote(location);
                    return Err(DistributionError::Redirect { url: at, location });
                }
            }
        }
        Err(DistributionError::Redirect {
            url: ask.url.to_owned(),
            location: quote(&at),
        })
    }

    fn once(&self, ask: Ask<'_>, at: &str, authorization: Option<&str>) -> Result<Response<Body>> {
        let origin = url::origin(at).unwrap_or_default();
        let host = origin
            .split_once("://")
            .map_or("", |(_, authority)| url::host_of(authority));
        let agent = if url::is_loopback(host) {
            &self.direct
        } else {
            &self.agent
        };
        let mut request = match ask.method {
            Method::Get => agent.get(at),
            Method::Head => agent.head(at),
        };
        request = request.header("accept", ask.accept);
        if ask.from > 0 {
            request = request.header("range", format!("bytes={}-", ask.from));
        }
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        request.call().map_err(|error| DistributionError::Request {
            method: ask.method.name(),
            url: at.to_owned(),
            source: transport(&error, at),
        })
    }
}

fn roots(pem: &[u8]) -> Result<RootCerts> {
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(DistributionError::Roots(error.to_string())),
        }
    }
    if found.is_empty() {
        return Err(DistributionError::Roots("no certificate found".to_owned()));
    }
    Ok(RootCerts::from(found))
}

/// Says whether a status asks for another attempt later.
pub(crate) fn is_overload(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502..=504)
}

/// Says whether a failed request may work when it is sent again.
pub(crate) fn is_transient(error: &DistributionError) -> bool {
    matches!(
        error,
        DistributionError::Request {
            source: TransportError::Broken(_),
            ..
        }
    )
}

/// Reads `Retry-After` in seconds; the form with a date is left to our own pause.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header_text(headers, "retry-after")?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}

pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Reads a body of at most `limit` bytes; a longer one gives `limit + 1` bytes.
pub(crate) fn read_at_most(response: Response<Body>, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    response
        .into_body()
        .into_reader()
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<OneError>,
    #[serde(default)]
    details: Option<String>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Reads what a registry says in the body of an error; the connection stays usable.
pub(crate) fn problem(response: Response<Body>) -> RegistryProblem {
    let status = response.status();
    let bytes = read_at_most(response, MAX_ERROR_BYTES).unwrap_or_default();
    let parsed = serde_json::from_slice::<Errors>(&bytes).ok();
    let (first, details) =
        parsed.map_or((None, None), |e| (e.errors.into_iter().next(), e.details));
    match (first, details) {
        (Some(e), _) => RegistryProblem::new(&quote(&e.code), &quote(&e.message)),
        (None, Some(details)) => RegistryProblem::new("", &quote(&details)),
        (None, None) => RegistryProblem::new(
            "",
            &status.canonical_reason().unwrap_or("").to_ascii_lowercase(),
        ),
    }
}

/// Chooses the words of a denial: Docker's for whoever is not logged in, the registry's else.
pub(crate) fn denial(said: RegistryProblem, logged_in: bool) -> RegistryProblem {
    match (said.code.as_str(), logged_in) {
        ("DENIED", _) if !said.message.is_empty() => said,
        (_, true) if !said.code.is_empty() || !said.message.is_empty() => said,
        _ => RegistryProblem::denied(),
    }
}

/// Makes the error for an answer that has no meaning here.
pub(crate) fn unexpected(ask: Ask<'_>, response: Response<Body>) -> DistributionError {
    DistributionError::Status {
        method: ask.method.name(),
        url: ask.url.to_owned(),
        status: response.status().as_u16(),
        problem: problem(response),
    }
}

/// Makes the error for an answer that broke off.
pub(crate) fn broken(ask: Ask<'_>, error: &std::io::Error) -> DistributionError {
    DistributionError::Request {
        method: ask.method.name(),
        url: ask.url.to_owned(),
        source: TransportError::Broken(phrase(error)),
    }
}

/// Makes foreign text fit for one line of an error message.
pub(crate) fn quote(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_QUOTED_CHARS)
        .collect()
}

fn transport(error: &ureq::Error, at: &str) -> TransportError {
    use std::io::ErrorKind as Io;
    use ureq::Timeout;
    let dial = |reason: &str| TransportError::Dial {
        address: url::dial_address(at),
        reason: reason.to_owned(),
    };
    match error {
        ureq::Error::Io(io) => match io.kind() {
            Io::ConnectionRefused
            | Io::HostUnreachable
            | Io::NetworkUnreachable
            | Io::AddrNotAvailable => dial(&phrase(io)),
            Io::InvalidData => TransportError::Tls(phrase(io)),
            _ if io.to_string().starts_with(LOOKUP_FAILED) => dial(lookup_phrase(io)),
            _ => TransportError::Broken(phrase(io)),
        },
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => dial("i/o timeout"),
        ureq::Error::Timeout(_) => TransportError::Broken("i/o timeout".to_owned()),
        ureq::Error::HostNotFound => dial("no such host"),
        ureq::Error::ConnectionFailed => dial("connection failed"),
        ureq::Error::Tls(text) => TransportError::Tls((*text).to_owned()),
        ureq::Error::Rustls(error) => TransportError::Tls(error.to_string()),
        other => TransportError::Broken(other.to_string()),
    }
}

/// Puts a failed look-up in the short words of a network message.
fn lookup_phrase(error: &std::io::Error) -> &'static str {
    if error.to_string().ends_with("Try again") {
        "temporary failure in name resolution"
    } else {
        "no such host"
    }
}

/// Puts an I/O error in the short words of a network message.
fn phrase(error: &std::io::Error) -> String {
    use std::io::ErrorKind as Io;
    let text = match error.kind() {
        Io::ConnectionRefused => "connection refused",
        Io::ConnectionReset => "connection reset by peer",
        Io::ConnectionAborted => "connection aborted",
        Io::HostUnreachable => "no route to host",
        Io::NetworkUnreachable => "network is unreachable",
        Io::TimedOut | Io::WouldBlock => "i/o timeout",
        Io::UnexpectedEof => "unexpected end of answer",
        Io::BrokenPipe => "broken pipe",
        _ => return error.to_string(),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_must_hold_a_certificate() {
        assert!(matches!(roots(b"hello"), Err(DistributionError::Roots(_))));
        assert!(matches!(roots(b""), Err(DistributionError::Roots(_))));
    }

    #[test]
    fn a_denial_speaks_dockers_words_unless_logged_in() {
        let unauthorized = RegistryProblem::new("UNAUTHORIZED", "authentication required");
        assert_eq!(
            denial(unauthorized.clone(), false),
            RegistryProblem::denied()
        );
        assert_eq!(denial(unauthorized.clone(), true), unauthorized);
    }

    #[test]
    fn foreign_text_is_cut_and_stays_on_one_line() {
        assert_eq!(quote("a\nb\x1b[2Jc"), "a b [2Jc");
        assert_eq!(quote(&"x".repeat(1000)).len(), MAX_QUOTED_CHARS);
    }
}
