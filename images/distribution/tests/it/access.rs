//! Authentication, redirects, TLS.

use std::path::Path;

use amphora_distribution::{ClientConfig, Credentials, DistributionError, Silent};
use amphora_spec::error::chain;
use amphora_spec::{Classify, ErrorKind};

use crate::front::{Act, Front, Seen};
use crate::image::{self, Layer, Pack};
use crate::registry::Registry;
use crate::site::{Site, quick};

/// `Basic` of `me:secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn registry() -> Registry {
    let registry = Registry::start();
    image::push(
        &registry,
        "team/app",
        &[Layer::new(Pack::Gzip, "a", b"alpha")],
    );
    registry
}

fn with_password(domain: String, password: &str) -> ClientConfig {
    let mut config = quick();
    let credentials = Credentials {
        username: "me".to_owned(),
        password: password.to_owned(),
    };
    config.credentials.insert(domain, credentials);
    config
}

fn challenge(value: &str) -> Act {
    let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    Act::Answer(
        401,
        vec![("WWW-Authenticate".to_owned(), value.to_owned())],
        body.to_vec(),
    )
}

fn token_service(seen: &Seen, own_port: u16, private: bool) -> Act {
    let bearer = seen.header("authorization");
    if seen.path.starts_with("/token?") {
        assert!(
            seen.path.contains("service=the%20registry"),
            "{}",
            seen.path
        );
        assert!(
            seen.path.contains("scope=repository:team/app:pull"),
            "{}",
            seen.path
        );
        return match (private, bearer) {
            (true, Some(BASIC)) | (false, None) => Act::Answer(
                200,
                Vec::new(),
                br#"{"token":"t0ken","expires_in":60}"#.to_vec(),
            ),
            _ => Act::Answer(
                401,
                Vec::new(),
                br#"{"details":"incorrect username or password"}"#.to_vec(),
            ),
        };
    }
    match bearer {
        Some("Bearer t0ken") => Act::Pass,
        _ => challenge(&format!(
            "Bearer realm=\"http://127.0.0.1:{own_port}/token\",service=\"the registry\",\
             scope=\"repository:team/app:pull\""
        )),
    }
}

/// A front with a token service beside it.
fn token_front(registry: &Registry, private: bool) -> (Front, Front) {
    let service = Front::start(registry.port, move |_, seen| {
        token_service(seen, 0, private)
    });
    let port = service.port;
    let front = Front::start(registry.port, move |_, seen| {
        token_service(seen, port, private)
    });
    (front, service)
}

#[test]
fn a_token_is_fetched_once_without_credentials() {
    let registry = registry();
    let (front, service) = token_front(&registry, false);
    let site = Site::new();
    site.pull(&front.name("team/app")).unwrap();
    assert_eq!(service.seen().len(), 1);
    let refused = front
        .seen()
        .iter()
        .filter(|s| s.header("authorization").is_none())
        .count();
    assert_eq!(refused, 1, "only the first request goes without the token");
}

#[test]
fn a_token_is_fetched_with_credentials() {
    let registry = registry();
    let (front, service) = token_front(&registry, true);
    let config = with_password(format!("127.0.0.1:{}", front.port), "secret");
    let site = Site::new();
    site.pull_with(config, &front.name("team/app"), None, &Silent)
        .unwrap();
    assert_eq!(service.seen().len(), 1);
    assert!(service.seen()[0].path.contains("account=me"));
    assert!(
        front
            .seen()
            .iter()
            .all(|s| s.header("authorization") != Some(BASIC))
    );
}

#[test]
fn denied_access_is_told_in_dockers_words() {
    let registry = registry();
    let (front, _service) = token_front(&registry, true);
    let site = Site::new();
    let name = front.name("team/app");
    let error = site.pull(&name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let denied = format!(
        "pull access denied for {name}, repository does not exist or may require 'docker login': "
    );
    assert_eq!(
        chain(&error),
        format!("{denied}denied: requested access to the resource is denied")
    );
    let config = with_password(format!("127.0.0.1:{}", front.port), "wrong");
    let error = site.pull_with(config, &name, None, &Silent).unwrap_err();
    assert_eq!(
        chain(&error),
        format!("{denied}incorrect username or password")
    );
    assert!(!chain(&error).contains("wrong"));
    site.assert_clean();
}

#[test]
fn basic_credentials_are_given_when_asked_for() {
    let registry = registry();
    let front = Front::start(registry.port, |_, seen| {
        match seen.header("authorization") {
            Some(BASIC) => Act::Pass,
            _ => challenge("Basic realm=\"Registry\""),
        }
    });
    let site = Site::new();
    let name = front.name("team/app");
    let domain = format!("127.0.0.1:{}", front.port);
    let config = with_password(domain.clone(), "secret");
    site.pull_with(config, &name, None, &Silent).unwrap();
    let site = Site::new();
    for config in [quick(), with_password(domain, "wrong")] {
        let error = site.pull_with(config, &name, None, &Silent).unwrap_err();
        assert!(
            matches!(error, DistributionError::AccessDenied { .. }),
            "{}",
            chain(&error)
        );
    }
    site.assert_clean();
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let registry = registry();
    let elsewhere = Front::start(registry.port, |_, _| Act::Pass);
    let port = elsewhere.port;
    let front = Front::start(registry.port, move |_, seen| {
        match seen.header("authorization") {
            Some(BASIC) if seen.is_blob() => {
                let location = format!("http://127.0.0.1:{port}{}", seen.path);
                Act::Answer(
                    307,
                    vec![("Location".to_owned(), location)],
                    b"go there".to_vec(),
                )
            }
            Some(BASIC) => Act::Pass,
            _ => challenge("Basic realm=\"Registry\""),
        }
    });
    let site = Site::new();
    let config = with_password(format!("127.0.0.1:{}", front.port), "secret");
    site.pull_with(config, &front.name("team/app"), None, &Silent)
        .unwrap();
    assert_eq!(elsewhere.blobs().len(), 2);
    assert!(
        elsewhere
            .seen()
            .iter()
            .all(|s| s.header("authorization").is_none())
    );
}

#[test]
fn another_hosts_challenge_gets_no_credentials() {
    let registry = registry();
    let elsewhere = Front::start(registry.port, |_, _| challenge("Basic realm=\"mine\""));
    let port = elsewhere.port;
    let front = Front::start(registry.port, move |_, seen| {
        let location = format!("http://127.0.0.1:{port}{}", seen.path);
        Act::Answer(302, vec![("Location".to_owned(), location)], Vec::new())
    });
    let site = Site::new();
    let config = with_password(format!("127.0.0.1:{}", front.port), "secret");
    let error = site
        .pull_with(config, &front.name("team/app"), None, &Silent)
        .unwrap_err();
    assert!(
        matches!(error, DistributionError::AccessDenied { .. }),
        "{}",
        chain(&error)
    );
    assert!(
        elsewhere
            .seen()
            .iter()
            .all(|s| s.header("authorization").is_none())
    );
}

#[test]
fn a_circle_of_redirects_ends() {
    let registry = registry();
    let front = Front::start(registry.port, |_, seen| {
        Act::Answer(
            302,
            vec![("Location".to_owned(), seen.path.clone())],
            Vec::new(),
        )
    });
    let site = Site::new();
    let error = site.pull(&front.name("team/app")).unwrap_err();
    assert!(
        matches!(error, DistributionError::Redirect { .. }),
        "{}",
        chain(&error)
    );
    assert_eq!(front.seen().len(), 6);
}

#[test]
fn tls_is_verified_against_the_given_roots() {
    let registry = Registry::start_tls();
    let domain = format!("localhost:{}", registry.port);
    let name = format!("{domain}/team/app");
    let mut config = quick();
    config.secure.insert(domain);
    let site = Site::new();
    let error = site
        .pull_with(config.clone(), &name, None, &Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        chain(&error).contains("tls: invalid peer certificate"),
        "{}",
        chain(&error)
    );
    // With the right root the registry itself answers: it has no such image.
    let pem = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/localhost.pem");
    config.roots_pem = Some(std::fs::read(pem).unwrap());
    let error = site.pull_with(config, &name, None, &Silent).unwrap_err();
    assert!(
        matches!(error, DistributionError::ManifestUnknown { .. }),
        "{}",
        chain(&error)
    );
}
