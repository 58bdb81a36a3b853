//! One case per rule and per form of Wasm image found in the wild.

use super::*;

fn wasm_facts() -> WasmFacts {
    WasmFacts {
        kind: ModuleKind::Core,
        world: World::Command,
        imports: vec!["wasi_snapshot_preview1::proc_exit".to_owned()],
        exports: vec!["_start".to_owned(), "memory".to_owned()],
        missing: Vec::new(),
        proxy_wasm: false,
    }
}

fn module(location: ModuleLocation) -> Option<ModuleFacts> {
    Some(ModuleFacts {
        digest: Digest::from_sha256([7; 32]),
        location,
        wasm: wasm_facts(),
    })
}

fn in_layer() -> Option<ModuleFacts> {
    module(ModuleLocation::Layer(Digest::from_sha256([7; 32])))
}

fn in_rootfs(path: &str) -> Option<ModuleFacts> {
    module(ModuleLocation::Rootfs(path.to_owned()))
}

fn linux_image() -> Facts {
    Facts {
        config_media_type: media::OCI_CONFIG.to_owned(),
        platform: Platform::new("linux", "amd64"),
        layers: vec![media::OCI_LAYER_GZIP.to_owned()],
        magic: Magic::Elf,
        ..Facts::default()
    }
}

fn wasm_image(os: &str, arch: &str) -> Facts {
    Facts {
        platform: Platform::new(os, arch),
        magic: Magic::WasmCore,
        module: in_rootfs("/app.wasm"),
        ..linux_image()
    }
}

fn raw(config: &str, layer: &str) -> Facts {
    Facts {
        config_media_type: config.to_owned(),
        layers: vec![layer.to_owned()],
        magic: Magic::WasmCore,
        module: in_layer(),
        ..Facts::default()
    }
}

fn choose(facts: &Facts) -> Result<Selection, SelectError> {
    select(facts, &Options::default())
}

#[track_caller]
fn runs(facts: &Facts, executor: Executor, reason: &str) {
    let selection = choose(facts).unwrap();
    assert_eq!(
        (selection.executor, selection.reason.as_str()),
        (executor, reason)
    );
}

#[track_caller]
fn refused(facts: &Facts, sentence: &str) {
    assert_eq!(choose(facts).unwrap_err().to_string(), sentence);
}

fn with_runtime(name: &str) -> Options {
    Options {
        runtime: Some(name.to_owned()),
        ..Options::default()
    }
}

#[test]
fn row_0_a_runtime_name_forces_the_executor() {
    for name in ["wasm", "wasmtime", "crun-wasm", "io.containerd.wasmtime.v1"] {
        let selection = select(&wasm_image("linux", "amd64"), &with_runtime(name)).unwrap();
        assert_eq!(selection.executor, Executor::Wasm);
        assert_eq!(
            selection.reason,
            format!("runtime \"{name}\" was asked for")
        );
    }
    for name in ["runc", "crun", "youki", "io.containerd.runc.v2", "linux"] {
        let selection = select(&linux_image(), &with_runtime(name)).unwrap();
        assert_eq!(selection.executor, Executor::Linux);
    }
}

#[test]
fn row_0_a_runtime_that_cannot_is_a_conflict() {
    let error = select(&linux_image(), &with_runtime("wasmtime")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "runtime \"wasmtime\" asks for Wasm, but the entrypoint is an ELF executable"
    );
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let error = select(&wasm_image("wasi", "wasm"), &with_runtime("runc")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "runtime \"runc\" asks for Linux, but the entrypoint is a Wasm module"
    );
    let artifact = raw(media::WASM_CONFIG_V0, media::WASM_LAYER);
    let error = select(&artifact, &with_runtime("runc")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "runtime \"runc\" asks for Linux, but the image is a Wasm OCI artifact"
    );
    let error = select(&linux_image(), &with_runtime("kata")).unwrap_err();
    assert_eq!(error.to_string(), "unknown runtime \"kata\"");
}

#[test]
fn a_forced_runtime_still_names_missing_imports() {
    let mut facts = wasm_image("wasi", "wasm");
    facts.module.as_mut().unwrap().wasm.missing = vec!["env.foo".to_owned()];
    let error = select(&facts, &with_runtime("wasm")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "module imports unknown functions: env.foo"
    );
}

#[test]
fn a_platform_of_the_other_family_is_a_conflict() {
    let wasi = Options {
        platform: Some("wasi/wasm".parse().unwrap()),
        ..Options::default()
    };
    assert_eq!(
        select(&linux_image(), &wasi).unwrap_err().to_string(),
        "platform \"wasi/wasm\" asks for Wasm, but the entrypoint is an ELF executable"
    );
    assert!(select(&wasm_image("wasip1", "wasm"), &wasi).is_ok());
    let linux = Options {
        platform: Some("linux/amd64".parse().unwrap()),
        ..Options::default()
    };
    assert_eq!(
        select(&wasm_image("wasip1", "wasm"), &linux)
            .unwrap_err()
            .to_string(),
        "platform \"linux/amd64\" asks for Linux, but the image is made for wasip1/wasm"
    );
    assert!(
        select(&wasm_image("linux", "amd64"), &linux).is_ok(),
        "form K under its own platform"
    );
}

#[test]
fn form_a_is_a_wasm_artifact_of_one_layer() {
    let mut facts = raw(media::WASM_CONFIG_V0, media::WASM_LAYER);
    runs(&facts, Executor::Wasm, "the image is a Wasm OCI artifact");
    facts.layers.push(media::WASM_LAYER.to_owned());
    refused(
        &facts,
        "Wasm artifact has 2 layers, the format allows exactly one",
    );
    let mut by_type = raw(media::OCI_EMPTY, media::WASM_LAYER);
    by_type.artifact_type = Some(media::WASM_CONFIG_V0.to_owned());
    runs(&by_type, Executor::Wasm, "the image is a Wasm OCI artifact");
}

#[test]
fn form_b_is_recognised_by_every_spelling_of_the_platform() {
    for (os, arch) in [
        ("wasi", "wasm"),
        ("wasi", "wasm32"),
        ("wasip1", "wasm"),
        ("linux", "wasm"),
        ("Wasip1", "Wasm"),
    ] {
        runs(
            &wasm_image(os, arch),
            Executor::Wasm,
            &format!("the image is made for {os}/{arch}"),
        );
    }
}

#[test]
fn form_c_has_raw_layers_under_a_wasm_platform() {
    let mut facts = wasm_image("wasip1", "wasm");
    facts.layers = vec![media::WASM_COMPONENT_LAYER.to_owned()];
    facts.module = in_layer();
    runs(&facts, Executor::Wasm, "the image is made for wasip1/wasm");
}

#[test]
fn form_d_annotations_and_labels_ask_for_wasm() {
    for (key, value) in [
        (VARIANT_ANNOTATION, "compat"),
        (HANDLER_ANNOTATION, "wasm"),
        (HANDLER_ANNOTATION, "wasmtime"),
    ] {
        let mut facts = wasm_image("linux", "amd64");
        facts.annotations.insert(key.to_owned(), value.to_owned());
        runs(&facts, Executor::Wasm, &format!("annotation {key}={value}"));
        let mut facts = wasm_image("linux", "amd64");
        facts.labels.insert(key.to_owned(), value.to_owned());
        runs(&facts, Executor::Wasm, &format!("label {key}={value}"));
    }
    let options = Options {
        annotations: BTreeMap::from([(HANDLER_ANNOTATION.to_owned(), "wasm".to_owned())]),
        ..Options::default()
    };
    assert_eq!(
        select(&linux_image(), &options).unwrap_err().to_string(),
        "annotation run.oci.handler=wasm asks for Wasm, but the entrypoint is an ELF executable"
    );
}

#[test]
fn form_d_smart_annotations_leave_it_to_the_entrypoint() {
    for (key, value) in [
        (VARIANT_ANNOTATION, "compat-smart"),
        (HANDLER_ANNOTATION, "wasm-smart"),
    ] {
        let mut facts = wasm_image("linux", "amd64");
        facts.annotations.insert(key.to_owned(), value.to_owned());
        runs(&facts, Executor::Wasm, "the entrypoint is a Wasm module");
        let mut facts = linux_image();
        facts.annotations.insert(key.to_owned(), value.to_owned());
        runs(
            &facts,
            Executor::Linux,
            "the entrypoint is an ELF executable",
        );
    }
}

#[test]
fn form_e_is_a_legacy_artifact() {
    let facts = raw(media::WASM_CONFIG_V1, media::WASM_CONTENT_LAYER);
    runs(
        &facts,
        Executor::Wasm,
        "the image is a Wasm artifact of the older kind (wasm-to-oci)",
    );
}

#[test]
fn form_f_is_refused_as_an_envoy_plugin() {
    let facts = raw(media::PROXY_WASM_CONFIG, media::MODULE_WASM_LAYER);
    refused(
        &facts,
        "the image is an Envoy proxy-wasm plugin, not a container",
    );
    let mut facts = wasm_image("wasi", "wasm");
    facts.module.as_mut().unwrap().wasm.proxy_wasm = true;
    refused(
        &facts,
        "the image is an Envoy proxy-wasm plugin, not a container",
    );
}

#[test]
fn form_g_is_refused_as_an_envoy_plugin() {
    let mut facts = wasm_image("linux", "amd64");
    facts
        .annotations
        .insert(VARIANT_ANNOTATION.to_owned(), "compat".to_owned());
    facts.module = in_rootfs("/plugin.wasm");
    refused(
        &facts,
        "the image is an Envoy proxy-wasm plugin, not a container",
    );
}

#[test]
fn form_h_runs_when_it_is_a_plain_command() {
    let mut facts = raw(media::WASMCLOUD_CONFIG, media::MODULE_WASM_LAYER);
    runs(&facts, Executor::Wasm, "the image is a wasmCloud module");
    let wasm = &mut facts.module.as_mut().unwrap().wasm;
    wasm.missing = vec!["wapc.__guest_request".to_owned()];
    refused(
        &facts,
        "module imports unknown functions: wapc.__guest_request",
    );
}

#[test]
fn form_i_is_refused_as_a_spin_application() {
    let sentence = "the image is a Spin application, which needs the Spin runtime";
    refused(&raw(media::SPIN_APPLICATION, media::WASM_LAYER), sentence);
    let mut facts = wasm_image("Wasip1", "wasm");
    facts.layers = vec![
        media::SPIN_APPLICATION.to_owned(),
        media::WASM_LAYER.to_owned(),
    ];
    refused(&facts, sentence);
    let error = select(&facts, &with_runtime("wasm")).unwrap_err();
    assert_eq!(error.to_string(), sentence);
}

#[test]
fn form_j_is_decided_per_entry_of_the_index() {
    runs(
        &linux_image(),
        Executor::Linux,
        "the entrypoint is an ELF executable",
    );
    runs(
        &wasm_image("wasi", "wasm"),
        Executor::Wasm,
        "the image is made for wasi/wasm",
    );
}

#[test]
fn form_k_is_recognised_by_its_magic_bytes() {
    runs(
        &wasm_image("linux", "amd64"),
        Executor::Wasm,
        "the entrypoint is a Wasm module",
    );
    let mut facts = wasm_image("linux", "amd64");
    facts.magic = Magic::WasmComponent;
    runs(&facts, Executor::Wasm, "the entrypoint is a Wasm component");
}

#[test]
fn form_l_is_refused_by_the_names_it_lacks() {
    let mut facts = wasm_image("wasi", "wasm");
    facts.module.as_mut().unwrap().wasm.missing = vec!["env.foo".to_owned(), "gojs.bar".to_owned()];
    refused(
        &facts,
        "module imports unknown functions: env.foo, gojs.bar",
    );
    facts.module.as_mut().unwrap().wasm.missing = (0..14).map(|n| format!("env.f{n}")).collect();
    assert!(
        choose(&facts)
            .unwrap_err()
            .to_string()
            .ends_with("env.f11 and 2 more")
    );
    let mut facts = wasm_image("wasi", "wasm");
    let wasm = &mut facts.module.as_mut().unwrap().wasm;
    wasm.kind = ModuleKind::Component;
    wasm.missing = vec!["wasi:nn/graph@0.2.0".to_owned()];
    refused(
        &facts,
        "component imports unknown interfaces: wasi:nn/graph@0.2.0",
    );
    let facts = wasm_image("js", "wasm");
    refused(
        &facts,
        "the image is made for js/wasm, which needs a JavaScript host",
    );
}

#[test]
fn row_10_everything_else_is_linux() {
    let mut facts = linux_image();
    facts.magic = Magic::Script;
    runs(&facts, Executor::Linux, "the entrypoint is a script");
    for magic in [Magic::Other, Magic::Missing] {
        facts.magic = magic;
        runs(
            &facts,
            Executor::Linux,
            "nothing in the image asks for Wasm",
        );
    }
}

#[test]
fn native_code_and_text_are_refused_whatever_is_asked() {
    let mut facts = linux_image();
    facts.magic = Magic::Precompiled;
    for options in [
        Options::default(),
        with_runtime("wasm"),
        with_runtime("runc"),
    ] {
        let text = select(&facts, &options).unwrap_err().to_string();
        assert!(text.contains("never loaded from an image"), "{text}");
    }
    facts.magic = Magic::Wat;
    assert!(
        choose(&facts)
            .unwrap_err()
            .to_string()
            .contains("text form")
    );
}

#[test]
fn a_wasm_platform_without_a_module_is_refused() {
    let mut facts = wasm_image("wasi", "wasm");
    facts.module = None;
    facts.magic = Magic::Elf;
    refused(
        &facts,
        "the image is made for wasi/wasm, but the entrypoint is an ELF executable",
    );
    facts.magic = Magic::Missing;
    refused(
        &facts,
        "the image is made for wasi/wasm, but it holds no module",
    );
}

#[test]
fn worlds_that_are_not_commands_need_an_export() {
    let mut facts = wasm_image("wasi", "wasm");
    let wasm = &mut facts.module.as_mut().unwrap().wasm;
    wasm.world = World::Reactor;
    wasm.exports = vec!["_initialize".to_owned(), "handle".to_owned()];
    assert!(
        choose(&facts)
            .unwrap_err()
            .to_string()
            .contains("name an export")
    );
    let call = |name: &str| Options {
        function: Some(name.to_owned()),
        ..Options::default()
    };
    assert!(select(&facts, &call("handle")).is_ok());
    assert_eq!(
        select(&facts, &call("nope")).unwrap_err().to_string(),
        "module exports no function \"nope\""
    );
    facts.module.as_mut().unwrap().wasm.world = World::Unknown;
    refused(
        &facts,
        "module exports no known entry point and imports wasi_snapshot_preview1::proc_exit",
    );
    facts.module.as_mut().unwrap().wasm.world = World::Http;
    refused(
        &facts,
        "module is a wasi:http server, which is not served yet",
    );
}

#[test]
fn facts_survive_their_record() {
    let facts = wasm_image("wasip1", "wasm");
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
}
